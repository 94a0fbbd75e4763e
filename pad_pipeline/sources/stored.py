"""Images with all that was found in them, from the shards of one run or of several: to write them anew."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pad_pipeline.records import Planned, ShardRow
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.sources.selection import Selection


class StoredSource:
    """Every image of finished shards, failed ones too, in plan order, one run behind the other.

    Each image is planned at its `ShardRow`.

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
                    at = ShardRow(f"{where}{name}.parquet", number, size)
                    yield Planned(row["id"], row["source"], place=at, sample_sha256=row["sha256"])

    def _prefix(self, shards: ShardFolder) -> str:
        if shards.folder.remote:
            return "" if len(self.runs) == 1 else f"{shards.folder}/"
        below = os.path.relpath(Path(str(shards.folder)).resolve(), self.root)
        return "" if below == "." else f"{below}/"
