"""What a run found: images, regions, labels, statuses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pad_pipeline.shards.reader import ShardFolder, open_shards


@dataclass
class Statistics:
    """Counts over the finished shards of a run."""

    shards: ShardFolder
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    """Regions by label."""
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """The images in quarantine, by their path in the source, for each stage and reason."""
    tags: int = 0
    regions: int = 0
    crowds: int = 0
    captions: int = 0
    out_of_view: int = 0
    """Regions of which the view shows nothing (a crop can cut them off)."""

    @property
    def images(self) -> int:
        """Images in all, failed ones too."""
        return self.statuses.total()

    def add(self, shard: str) -> None:
        """Count the images and regions of one finished shard."""
        for row in self.shards.index(shard):
            self.statuses[row["status"]] += 1
            if row["status"] == "failed":
                self.failures.setdefault((row["stage"], row["reason"]), []).append(row["source"] or row["id"])
                continue
            sample = self.shards.sample(shard, row, image=False)
            self.tags += row["tags"]
            self.regions += row["regions"]
            self.captions += bool(sample.meta["caption"])
            self.labels.update(region["label"] for region in sample.meta["regions"])
            self.crowds += sum(region["crowd"] for region in sample.meta["regions"])
            self.out_of_view += int(np.count_nonzero(~sample.coverage.any((1, 2))))


def read_statistics(shards: Path | str) -> Statistics:
    """Go through every finished shard once.

    Raises:
        UserError: there is none.
    """
    stats = Statistics(open_shards(shards))
    for shard in stats.shards.names:
        stats.add(shard)
    return stats


def as_json(stats: Statistics) -> str:
    """The statistics for programs."""
    return json.dumps(
        {
            "shards": {"finished": len(stats.shards.names), "planned": stats.shards.run.shards},
            "images": stats.images,
            "statuses": dict(stats.statuses),
            "captions": stats.captions,
            "tags": stats.tags,
            "regions": stats.regions,
            "crowd_regions": stats.crowds,
            "regions_out_of_view": stats.out_of_view,
            "labels": dict(stats.labels.most_common()),
            "failures": [
                {"stage": stage, "reason": reason, "images": sources}
                for (stage, reason), sources in stats.failures.items()
            ],
            "left_out": stats.shards.run.counts,
        },
        indent=2,
    )
