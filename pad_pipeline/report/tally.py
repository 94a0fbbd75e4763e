"""Counts the images in a report as `pad stats` does, and makes histograms of scores, coverage and sizes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import add
from typing import Self

from pad_pipeline.report.cards import TOUCHED_BINS, Card
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.stats import Statistics


class Histogram:
    """Counts values in bins between `edges`. The last bin includes its upper edge. Values outside all bins count in the
    first or the last bin."""

    def __init__(self, title: str, edges: Sequence[float], unit: str = "") -> None:
        self.title, self.edges, self.unit = title, edges, unit
        self.counts = [0] * (len(edges) - 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[min(max(bisect_right(self.edges, value) - 1, 0), len(self.counts) - 1)] += 1

    @property
    def bins(self) -> list[tuple[str, int]]:
        """The name and the count of each bin."""
        whole = all(high == low + 1 for low, high in pairwise(self.edges[:-1]))  # a bin for each whole number
        names = [f"{low:g}" if whole else f"{low:g} to {high:g}" for low, high in pairwise(self.edges)]
        if self.edges[-1] == math.inf:
            names[-1] = f"{self.edges[-2]:g} or more"
        return [(f"{name} {self.unit}".strip(), count) for name, count in zip(names, self.counts, strict=True)]


class Tally(Statistics):
    """Counts the images of a report. Its memory grows with the number of labels, not with the number of images."""

    most_reasons, most_examples = 1000, 3

    def __init__(self, shards: ShardFolder) -> None:
        super().__init__(shards)
        self.numbers: dict[str, int] = {}
        """Label -> its number in the report's index, in the order of first appearance."""
        self.areas: dict[str, float] = {}
        """Label -> the sum over its regions of the share of the image that a region covers (0..1)."""
        share, pixels = [number / 20 for number in range(21)], [0, 128, 256, 384, 512, 640, 800, 1024, 1280, 1600]
        self.per_image = Histogram("Regions per image", [*range(21), math.inf], "regions")
        self.scores = Histogram("Score of regions", share)
        self.ious = Histogram("Predicted IoU of masks", share)
        self.shares = Histogram("Share of the image under a mask", share)
        self.seen = Histogram("Share of the view under a mask", share)
        self.touched = Histogram("Coverage of touched patches", [*range(0, 16 * TOUCHED_BINS, 16), 255], "of 255")
        self.long_edges = Histogram("Long edge of images", [*pixels, 2048, 3072, 4096, math.inf], "px")
        self.aspects = Histogram("Width over height", [0, 0.5, 0.65, 0.75, 0.9, 1.1, 1.35, 1.55, 2, math.inf])

    def merge(self, other: Self) -> None:
        """Add the counts of later shards, and number their labels."""
        super().merge(other)
        for label, area in other.areas.items():
            self.numbers.setdefault(label, len(self.numbers))
            self.areas[label] = self.areas.get(label, 0.0) + area
        for mine, theirs in zip(self.histograms, other.histograms, strict=True):
            mine.counts = [*map(add, mine.counts, theirs.counts)]

    @property
    def histograms(self) -> list[Histogram]:
        """All histograms, in the order of the report."""
        return [found for found in vars(self).values() if isinstance(found, Histogram)]

    def add(self, card: Card) -> None:
        """Count the image of a card."""
        data = card.data
        if data["status"] == "failed":
            self.count_failed(data)
            return
        hidden = sum(not measure.seen for measure in card.measures)
        self.count(data["status"], data["caption"], len(data["tags"]), data["regions"], hidden)
        self.per_image.add(len(data["regions"]))
        self.long_edges.add(max(data["width"], data["height"]))
        self.aspects.add(data["width"] / data["height"])
        self.touched.counts = [*map(add, self.touched.counts, card.touched.tolist())]
        for measure in card.measures:
            self.areas[measure.label] = self.areas.get(measure.label, 0.0) + measure.area
            self.scores.add(measure.score)
            self.ious.add(measure.predicted_iou)
            self.shares.add(measure.area)
            self.seen.add(measure.seen)
