"""Boxes: conversion to pixels, and non-maximum suppression."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import batched_nms

from pad_pipeline.records import Region


def to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Convert boxes `[N, 4]`: cxcywh in fractions of the image -> float64 xyxy in pixels, clipped to the image."""
    center, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    size = np.array([width, height])
    return np.concatenate([(center - half) * size, (center + half) * size], 1).clip(0, [width, height] * 2)


def suppress(regions: list[Region], iou: float, iou_across_labels: float) -> list[Region]:
    """Drop overlapping regions of one image, first within each label, then across labels.

    If two boxes of one label have an IoU above `iou` (0..1), the box with the lower score is dropped. At 1 nothing is
    dropped. `iou_across_labels` is the same limit for boxes of any labels. The result is sorted by score, the highest
    first; regions of equal score keep their order.
    """
    regions = sorted(regions, key=lambda region: -region.score)
    labels = dict.fromkeys(region.label for region in regions)
    numbers = {label: number for number, label in enumerate(labels)}
    for most, groups in ((iou, numbers), (iou_across_labels, dict.fromkeys(labels, 0))):
        if most < 1 and regions:
            boxes = torch.tensor([region.box for region in regions], dtype=torch.float64)
            # Ranks instead of scores, because `batched_nms` may sort equal scores in any order.
            ranks = torch.arange(len(regions), 0, -1, dtype=torch.float64)
            group = torch.tensor([groups[region.label] for region in regions])
            regions = [regions[index] for index in batched_nms(boxes, ranks, group, most).tolist()]
    return regions
