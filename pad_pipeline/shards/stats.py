"""Counts the images, statuses, regions and labels of a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pad_pipeline.shards.reader import ShardFolder, open_shards

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

    most_reasons: ClassVar[float] = math.inf
    """How many reasons are counted separately. Each image could have its own reason; more reasons count as `OTHER`."""
    most_examples: ClassVar[float] = math.inf
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

    def count_failed(self, row: Mapping[str, Any]) -> None:
        """Count a failed image, by its row in the index."""
        self.statuses["failed"] += 1
        reason = row["stage"], row["reason"]
        if reason not in self.failures and len(self.failures) >= self.most_reasons:
            reason = OTHER
        failure = self.failures.setdefault(reason, Failure())
        failure.count += 1
        if len(failure.such_as) < self.most_examples:
            failure.such_as.append(row["source"] or row["id"])

    def count_partial(self, row: Mapping[str, Any]) -> None:
        """Count an image that did not fail, if some of its annotations were left out."""
        if row["reason"]:
            self.partial.count += 1
            if len(self.partial.such_as) < self.most_examples:
                self.partial.such_as.append(f"{row['source']}: {row['reason']}")

    def count(self, status: str, caption: str, tags: int, regions: Sequence[Mapping[str, Any]], hidden: int) -> None:
        """Count an image that did not fail. `tags` and `hidden` are numbers of tags and of regions outside the view."""
        self.statuses[status] += 1
        self.captions += bool(caption)
        self.tags += tags
        self.regions += len(regions)
        self.labels.update(region["label"] for region in regions)
        self.crowds += sum(region["crowd"] for region in regions)
        self.out_of_view += hidden


def read_statistics(shards: Path | str) -> Statistics:
    """Count the images and regions of all finished shards; raise `UserError` if no shard is finished."""
    stats = Statistics(open_shards(shards))
    for shard in stats.shards.names:
        stats.add_shard(shard)
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
