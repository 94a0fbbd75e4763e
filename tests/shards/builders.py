"""Plans, facts of runs, and records, as the tests of the written format make them without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.plan import PlanFacts, write_plan
from pad_pipeline.records import ImageRecord, Planned, shard_name
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import Run
from pad_pipeline.sources.base import Tally

FIRST, SECOND = shard_name(0), shard_name(1)
GRID, WIDTH = 2, 3


class Listed:
    """A source of what it is given."""

    def __init__(self, images: Sequence[Planned]) -> None:
        self.origin = self.root = "/nowhere"
        self.counts = Tally()
        self.images = images

    def __iter__(self) -> Iterator[Planned]:
        yield from self.images


def planned(path: Path, images: Sequence[Planned], shard_size: int, limit: int | None = None) -> PlanFacts:
    return write_plan(Listed(images), path, shard_size, "names", limit)


def a_run(**more: Any) -> Run:
    facts: dict[str, Any] = {
        "kind": "build", "images": 1, "shards": 1, "shard_size": 100, "counts": {}, "embedding_width": WIDTH,
        "view": View(size=28, patch=14), "settings": {"decode": DecodeSettings().model_dump(mode="json")},
        "fingerprints": {},
    }  # fmt: skip
    return Run(**(facts | more))


def restored(shards: ShardFolder, name: str) -> list[ImageRecord]:
    """The records of a written shard, as they were when it was written."""
    rows = []
    for row in shards.index(name):
        record = ImageRecord(row["id"], row["source"], key=row["key"])
        if row["status"] == "failed":
            record.status, record.stage, record.reason = "failed", row["stage"], row["reason"]
            record.width, record.height = row["width"], row["height"]
        else:
            sample = shards.sample(name, row)
            record.restore(sample.meta)
            record.status, record.data = row["status"], sample.image
            record.coverage, record.embeds = sample.coverage, sample.embeds
        rows.append(record)
    return rows
