"""The statistics of a run, counted image by image: labels, scores, coverage, sizes, failures."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pad_pipeline.report.cards import TOUCHED_BINS, Card

_REASONS = 1000
"""Distinct reasons of failures that are counted separately. There is a limit, because each reason may name a file."""
_SUCH_AS = 3
"""Images that are named as examples for a reason."""
OTHER = ("", "other reasons")
"""The stage and the reason under which further reasons are counted."""


@dataclass
class Histogram:
    """Counts of values in bins between `edges`.

    The last bin includes its upper edge. Values outside all bins are counted in the first or the last one.
    """

    title: str
    edges: Sequence[float]
    unit: str = ""
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) - 1)

    def add(self, value: float, times: int = 1) -> None:
        """Count `value` `times` times."""
        self.counts[min(max(bisect_right(self.edges, value) - 1, 0), len(self.counts) - 1)] += times

    @property
    def total(self) -> int:
        """The number of values that were counted."""
        return sum(self.counts)

    @property
    def bins(self) -> list[tuple[str, int]]:
        """The name and the count of each bin."""
        names = [f"{low:g} to {high:g}" for low, high in pairwise(self.edges)]
        if all(high == low + 1 for low, high in pairwise(self.edges[:-1])):  # a bin for each whole number
            names = [f"{low:g}" for low in self.edges[:-1]]
        if self.edges[-1] == float("inf"):
            names[-1] = f"{self.edges[-2]:g} or more"
        return [(f"{name} {self.unit}".strip(), count) for name, count in zip(names, self.counts, strict=True)]


@dataclass
class LabelCount:
    """The number and the area of the regions of one label."""

    number: int
    """The label's number in the report's index; labels are numbered as they first appear."""
    count: int = 0
    area: float = 0.0
    """The sum over regions of the share of the image that each covers (0..1)."""


@dataclass
class Failure:
    """The images in quarantine for one reason."""

    count: int = 0
    such_as: list[str] = field(default_factory=list)
    """Examples: the first images, by their path in the source."""


def _shares(title: str, steps: int = 20) -> Histogram:
    return Histogram(title, [number / steps for number in range(steps + 1)])


@dataclass
class Tally:
    """Counts over the images of a report. Its size grows with the number of labels, not with the number of images."""

    statuses: Counter[str] = field(default_factory=Counter)
    labels: dict[str, LabelCount] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    """The failures by stage and reason."""
    captions: int = 0
    tags: int = 0
    regions: int = 0
    out_of_view: int = 0
    per_image: Histogram = field(
        default_factory=lambda: Histogram("Regions per image", [*range(21), float("inf")], "regions")
    )
    scores: Histogram = field(default_factory=lambda: _shares("Score of regions"))
    ious: Histogram = field(default_factory=lambda: _shares("Predicted IoU of masks"))
    areas: Histogram = field(default_factory=lambda: _shares("Share of the image under a mask"))
    seen: Histogram = field(default_factory=lambda: _shares("Share of the view under a mask"))
    touched: Histogram = field(
        default_factory=lambda: Histogram(
            "Coverage of touched patches", [16 * step for step in range(TOUCHED_BINS)] + [255], "of 255"
        )
    )
    long_edges: Histogram = field(
        default_factory=lambda: Histogram(
            "Long edge of images",
            [0, 128, 256, 384, 512, 640, 800, 1024, 1280, 1600, 2048, 3072, 4096, float("inf")],
            "px",
        )
    )
    aspects: Histogram = field(
        default_factory=lambda: Histogram(
            "Width over height", [0, 0.5, 0.65, 0.75, 0.9, 1.1, 1.35, 1.55, 2, float("inf")]
        )
    )

    @property
    def images(self) -> int:
        """The number of all images, failed ones included."""
        return self.statuses.total()

    @property
    def histograms(self) -> list[Histogram]:
        """All histograms, in the order of the report."""
        of_regions = [self.per_image, self.scores, self.ious, self.areas, self.seen, self.touched]
        return [*of_regions, self.long_edges, self.aspects]

    def add(self, card: Card) -> None:
        """Count the image of a card."""
        data = card.data
        self.statuses[data["status"]] += 1
        if data["status"] == "failed":
            reason = data["stage"], data["reason"]
            if reason not in self.failures and len(self.failures) >= _REASONS:
                reason = OTHER
            failure = self.failures.setdefault(reason, Failure())
            failure.count += 1
            if len(failure.such_as) < _SUCH_AS:
                failure.such_as.append(data["source"] or data["id"])
            return
        self.captions += bool(data["caption"])
        self.tags += len(data["tags"])
        self.regions += len(data["regions"])
        self.per_image.add(len(data["regions"]))
        self.long_edges.add(max(data["width"], data["height"]))
        self.aspects.add(data["width"] / data["height"])
        for step, number in enumerate(card.touched.tolist()):
            self.touched.counts[step] += number
        for measure in card.measures:
            label = self.labels.setdefault(measure.label, LabelCount(len(self.labels)))
            label.count += 1
            label.area += measure.area
            self.out_of_view += not measure.seen
            self.scores.add(measure.score)
            self.ious.add(measure.predicted_iou)
            self.areas.add(measure.area)
            self.seen.add(measure.seen)
