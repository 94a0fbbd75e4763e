"""Holds the numbers of all regions in a block of a report's index, so that the page counts regions exactly.

The arrays are little-endian numbers in base64, which a browser decodes faster than JSON lists of numbers. A score is
stored as a level: the highest k for which it is at least k / 1000. A threshold of p percent keeps exactly the regions
whose level is at least 10 p, and `pad retarget` with the option p / 100 keeps the same ones.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pad_pipeline.report.cards import Measure

LEVELS = 1000
STEPS = (0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The steps of the slider for coverage, in patches."""
BINS = 50
"""The number of bins in the histogram of a score, above its slider."""


def level(value: float) -> int:
    """Return the highest k in 0..1000 for which `value` is at least k / 1000; 0 for values below 0."""
    k = min(max(int(value * LEVELS), 0), LEVELS)
    return k - 1 if k and value < k / LEVELS else k  # the product may be rounded up, and never down to another level


def levels(measures: Sequence[Measure]) -> np.ndarray:
    """Return a row for each region, int64 `[N, 4]`: the levels of score, label score and predicted IoU, and the sum of
    the coverage in 255ths of a patch."""
    rows = [(level(m.score), level(m.label_score), level(m.predicted_iou), m.covered) for m in measures]
    return np.array(rows, np.int64).reshape(-1, 4)


class Histograms:
    """Counts regions by score, label score, predicted IoU and coverage."""

    def __init__(self) -> None:
        self.counts = {name: np.zeros(BINS, np.int64) for name in ("score", "label_score", "iou")}
        self.counts["patches"] = np.zeros(len(STEPS), np.int64)

    def add(self, found: np.ndarray) -> None:
        """Count regions, given as the rows of `levels`."""
        for number, name in enumerate(("score", "label_score", "iou")):
            bins = np.minimum(found[:, number] * BINS // LEVELS, BINS - 1)
            self.counts[name] += np.bincount(bins, minlength=BINS)
        bins = np.searchsorted(STEPS, found[:, 3] / 255, "right") - 1
        self.counts["patches"] += np.bincount(bins, minlength=len(STEPS))


def packed(numbers: Sequence[int] | np.ndarray, kind: str) -> str:
    """Return numbers of a NumPy type, such as "<u4", in base64."""
    return base64.b64encode(np.asarray(numbers, kind).tobytes()).decode()


class Regions(NamedTuple):
    """The regions of an image for the index."""

    labels: list[str]
    levels: np.ndarray
    """The rows of `levels`."""
    only: list[bool]
    """Whether each region is only in this run, if there is a second run to compare with."""


def regions_of(measures: Sequence[Measure], only: list[bool]) -> Regions:
    """Return the regions of an image for the index, from their numbers."""
    return Regions([measure.label for measure in measures], levels(measures), only)


def columns_of(images: Sequence[Regions], numbers: Mapping[str, int]) -> dict[str, str]:
    """Return the regions of some images as columns for the page: the number of regions of each image, then a number of
    each region for its label (from `numbers`), its levels, its coverage, and whether it is only in this run."""
    found = np.vstack([np.zeros((0, 4), np.int64), *(image.levels for image in images)])
    return {
        "regions": packed([len(image.labels) for image in images], "<u4"),
        "labels": packed([numbers[label] for image in images for label in image.labels], "<u4"),
        "score": packed(found[:, 0], "<u2"),
        "label_score": packed(found[:, 1], "<u2"),
        "iou": packed(found[:, 2], "<u2"),
        "patches": packed(found[:, 3], "<u4"),
        "only": packed([mark for image in images for mark in image.only], "<u1"),
    }
