"""Boxes: from parts of the image to pixels of it, and the suppression of those that overlap."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import batched_nms

from pad_pipeline.records import Region


def to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """cxcywh as parts of the image -> xyxy in pixels of the original, clipped to it: `[N, 4]`."""
    center, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    size = np.array([width, height])
    return np.concatenate([(center - half) * size, (center + half) * size], 1).clip(0, [width, height] * 2)


def suppress(regions: list[Region], iou: float, iou_across_labels: float) -> list[Region]:
    """Non-maximum suppression: each label by itself, and then over all of them; best score first, equal scores in the
    order they came.

    Args:
        regions: of one image.
        iou: of two boxes with the same label that overlap more, the one with the lower score goes; 1 for none.
        iou_across_labels: likewise, whatever their labels.
    """
    regions = sorted(regions, key=lambda region: -region.score)
    labels = {label: number for number, label in enumerate(dict.fromkeys(region.label for region in regions))}
    regions = _kept(regions, [labels[region.label] for region in regions], iou)
    return _kept(regions, [0] * len(regions), iou_across_labels)


def _kept(regions: list[Region], groups: list[int], iou: float) -> list[Region]:
    if iou >= 1 or not regions:
        return regions
    boxes = torch.tensor([region.box for region in regions], dtype=torch.float64)
    # Ranks, not scores: equal scores would leave the order to the sort inside `nms`.
    ranks = torch.arange(len(regions), 0, -1, dtype=torch.float64)
    return [regions[index] for index in batched_nms(boxes, ranks, torch.tensor(groups), iou).tolist()]
