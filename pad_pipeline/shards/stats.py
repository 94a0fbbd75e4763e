"""Counts the images, statuses, regions and labels of a run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.threads import OverShards, Track, map_shards, untracked

OTHER = ("", "other reasons")
"""The stage and the reason for images beyond `Statistics.most_reasons`."""


@dataclass
class Failure:
    """The images that failed for one reason."""

    count: int = 0
    such_as: list[str] = field(default_factory=list)
    """The first of these images, each by its path in the source, or else by its id."""


@dataclass
class Statistics:
    """Counts over the images of a run."""

    most_reasons: ClassVar[int] = sys.maxsize
    """How many reasons are counted separately. Each image could have its own reason; more reasons count as `OTHER`."""
    most_examples: ClassVar[int] = sys.maxsize
    """The highest number of images that are named for a reason."""
    shards: ShardFolder
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    """The number of regions of each label, in the order in which labels appear."""
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    """The failed images by stage and reason."""
    partial: Failure = field(default_factory=Failure)
    """The images of which annotations were left out, each with the reason."""
    tags: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    """The number of tags that each source gave. A tag may have two sources."""
    regions: int = 0
    crowds: int = 0
    captions: int = 0
    out_of_view: int = 0
    """The number of regions outside the view, which a crop has cut off."""

    @property
    def images(self) -> int:
        """The number of images, including failed ones."""
        return self.statuses.total()

    def add_shard(self, shard: str) -> None:
        """Count the images of one finished shard."""
        for row in self.shards.index(shard):
            if row["status"] == "failed":
                self.count_failed(row)
            else:
                self.count_partial(row)
                sample = self.shards.sample(shard, row, image=False)
                self.sources.update(source for tag in sample.meta["tags"] for source in tag["sources"])
                hidden = int(np.count_nonzero(~sample.coverage.any((1, 2))))
                self.count(row["status"], sample.meta["caption"], row["tags"], sample.meta["regions"], hidden)

    def merge(self, other: Self) -> None:
        """Add the counts of later shards."""
        for name in ("statuses", "labels", "sources"):
            getattr(self, name).update(getattr(other, name))
        for name in ("tags", "regions", "crowds", "captions", "out_of_view"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for (stage, reason), failure in other.failures.items():
            self._add(self._failure(stage, reason), failure.count, failure.such_as)
        self._add(self.partial, other.partial.count, other.partial.such_as)

    def count_failed(self, row: Mapping[str, Any]) -> None:
        """Count a failed image, by its row in the index."""
        self.statuses["failed"] += 1
        self._add(self._failure(row["stage"], row["reason"]), 1, [row["source"] or row["id"]])

    def count_partial(self, row: Mapping[str, Any]) -> None:
        """Count an image that did not fail, if some of its annotations were left out."""
        if row["reason"]:
            self._add(self.partial, 1, [f"{row['source']}: {row['reason']}"])

    def _failure(self, stage: str, reason: str) -> Failure:
        known = (stage, reason) in self.failures or len(self.failures) < self.most_reasons
        return self.failures.setdefault((stage, reason) if known else OTHER, Failure())

    def _add(self, failure: Failure, count: int, such_as: list[str]) -> None:
        failure.count += count
        failure.such_as += such_as[: max(self.most_examples - len(failure.such_as), 0)]

    def count(self, status: str, caption: str, tags: int, regions: Sequence[Mapping[str, Any]], hidden: int) -> None:
        """Count an image that did not fail. `tags` and `hidden` are numbers of tags and of regions outside the view."""
        self.statuses[status] += 1
        self.captions += bool(caption)
        self.tags += tags
        self.regions += len(regions)
        self.labels.update(region["label"] for region in regions)
        self.crowds += sum(region["crowd"] for region in regions)
        self.out_of_view += hidden


class ShortStatistics(Statistics):
    """Counts that need little memory however many images failed, for a table."""

    most_reasons, most_examples = 10_000, 1


def read_statistics(
    shards: ShardFolder,
    over: OverShards | None = None,
    kind: type[Statistics] = Statistics,
    track: Track[Statistics] = untracked,
) -> Statistics:
    """Count the images and regions of all finished shards, through `over`, see `map_shards`; show the progress with
    `track`."""
    stats = kind(shards)
    counted = map_shards(over, partial(_counted, kind, shards), shards.names)
    for of_shard in track(counted, "counting", len(shards.names)):
        stats.merge(of_shard)
    return stats


def _counted(kind: type[Statistics], shards: ShardFolder, name: str) -> Statistics:
    stats = kind(shards)
    stats.add_shard(name)
    return stats


def as_json(stats: Statistics) -> str:
    """Return the statistics as JSON, for other programs."""
    found = {
        "shards": {"finished": len(stats.shards.names), "planned": stats.shards.run.shards},
        "images": stats.images,
        "statuses": stats.statuses,
        "captions": stats.captions,
        "tags": stats.tags,
        "tag_sources": stats.sources,
        "regions": stats.regions,
        "crowd_regions": stats.crowds,
        "regions_out_of_view": stats.out_of_view,
        "labels": dict(stats.labels.most_common()),
        "failures": [
            {"stage": stage, "reason": reason, "images": failure.such_as}
            for (stage, reason), failure in stats.failures.items()
        ],
        "annotations_left_out": stats.partial.such_as,
        "left_out": stats.shards.run.counts,
    }
    return json.dumps(found, indent=2)
