"""Images with all that was found in them, from the shards of one run or of several: to write them anew."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.sources.base import Planned


class Selection(BaseModel):
    """Which images are taken. Each that is not left as it is leaves out some."""

    model_config = ConfigDict(extra="forbid")

    statuses: frozenset[str] = frozenset()
    """Only images with one of these: `ok`, `empty`, `failed`; empty for all."""
    labels: frozenset[str] = frozenset()
    """Only images with a region of one of these labels; empty for all."""
    ids: frozenset[str] = frozenset()
    """Only images with one of these ids; empty for all."""
    min_regions: int = Field(0, ge=0)
    """Only images with at least so many regions."""
    min_edge: int = Field(0, ge=0)
    """Only images whose shorter edge has at least so many pixels; failed ones, whose size is not known, go."""

    def takes(self, shards: ShardFolder, name: str, row: dict[str, Any]) -> bool:
        """Whether the image of one index row is taken. Its sample is read only where nothing less decides."""
        if (
            (self.statuses and row["status"] not in self.statuses)
            or (self.ids and row["id"] not in self.ids)
            or row["regions"] < self.min_regions
            or (self.min_edge and min(row["width"], row["height"]) < self.min_edge)
        ):
            return False
        if not self.labels:
            return True
        if not row["regions"]:
            return False
        regions = shards.sample(name, row, image=False).meta["regions"]
        return any(region["label"] in self.labels for region in regions)


class StoredSource:
    """Every image of finished shards, failed ones too, in plan order, one run behind the other.

    A planned image's `file` is the index of the shard that it is in, and `at` its row there.

    Args:
        shards: the folder of each run, a path or a URL.
        selection: which images.

    Raises:
        UserError: one of them holds no finished shard.
    """

    def __init__(self, shards: list[str], selection: Selection | None = None) -> None:
        self.runs = [open_shards(folder) for folder in shards]
        self.selection = selection or Selection()
        self.counts: Counter[str] = Counter()
        self.origin = ", ".join(str(run.folder) for run in self.runs)
        local = [str(Path(str(run.folder)).resolve()) for run in self.runs if not run.folder.remote]
        self.root = os.path.commonpath(local) if local else str(self.runs[0].folder)
        """What the local ones are below; remote ones are named in full."""

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for shards in self.runs:
            if unfinished := shards.run.shards - len(shards.names):
                self.counts["shards that are not finished"] += unfinished
            where = self._prefix(shards)
            for name in shards.names:
                for number, row in enumerate(shards.index(name)):
                    if not self.selection.takes(shards, name, row):
                        self.counts["images left out"] += 1
                        continue
                    size = max(row["image_bytes"], 0)
                    file = f"{where}{name}.parquet"
                    yield Planned(row["id"], row["source"], file=file, at=number, size=size, sha256=row["sha256"])

    def _prefix(self, shards: ShardFolder) -> str:
        if shards.folder.remote:
            return "" if len(self.runs) == 1 else f"{shards.folder}/"
        below = os.path.relpath(Path(str(shards.folder)).resolve(), self.root)
        return "" if below == "." else f"{below}/"
