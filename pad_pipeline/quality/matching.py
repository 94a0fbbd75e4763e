"""Matches found regions with true ones, by the rule of COCO's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.records import RegionJson

NONE = -1
"""Stands for "no true region" in the result of `match`."""


def match(ious: np.ndarray, allowed: np.ndarray, crowd: np.ndarray, least: float) -> np.ndarray:
    """Match found regions with true ones as `COCOeval.evaluateImg` of pycocotools does.

    Each found region, in order, takes the free true region with the highest IoU; the last of those with equal IoUs. A
    crowd is taken only if nothing else can be, and by any number of found regions.

    Args:
        ious: the IoU of each found region with each true one, float64 `[F, T]`. Found regions stand best first.
        allowed: whether a found region may take a true one (their labels agree), bool `[F, T]`.
        crowd: which true regions are crowds, bool `[T]`.
        least: the smallest IoU of a match.

    Returns:
        The index of the true region that each found one takes, or `NONE`: int64 `[F]`.
    """
    taken = np.full(len(ious), NONE)
    free = np.ones(len(crowd), bool)
    enough = allowed & (ious >= min(least, 1 - 1e-10))
    for number in np.flatnonzero(enough.any(1)):
        usable = enough[number] & (free | crowd)
        if (usable & ~crowd).any():
            usable &= ~crowd
        if usable.any():
            candidates = np.flatnonzero(usable)[::-1]
            chosen = candidates[ious[number, candidates].argmax()]
            taken[number], free[chosen] = chosen, False
    return taken


def box_ious(found: Sequence[RegionJson], true: Sequence[RegionJson]) -> np.ndarray:
    """Return the IoU of each found box with each true one, float64 `[F, T]`. For a crowd, the area of the found box
    takes the place of the union, as in COCO."""
    boxes = [
        np.array([[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (r["box"] for r in part)], float).reshape(-1, 4)
        for part in (found, true)
    ]
    return _ious(boxes[0], boxes[1], true)


def mask_ious(found: Sequence[RegionJson], true: Sequence[RegionJson]) -> np.ndarray:
    """Return the IoU of each found mask with each true one, as `box_ious` does for boxes. All masks were checked."""
    return _ious([region["rle"] for region in found], [region["rle"] for region in true], true)


def _ious(found: Sequence[Any] | np.ndarray, true: object, regions: Sequence[RegionJson]) -> np.ndarray:
    number = len(found)
    crowds = [int(region["crowd"]) for region in regions]
    ious = coco_mask.iou(found, true, crowds)
    return np.asarray(ious, float).reshape(number, len(crowds))  # without regions, pycocotools returns an empty list
