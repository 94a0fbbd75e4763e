"""Images of finished shards: to annotate them again, or to write them again with their annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pad_pipeline.errors import rename_field
from pad_pipeline.records import Place, Planned, ShardRow
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.selection import Selection
from pad_pipeline.storage import Folder
from pad_pipeline.threads import OverShards, map_shards

_UNFINISHED = "shards that are not finished"


class ShardsSource:
    """The images of every finished shard of a run, in plan order, to annotate them again from any stage on. An image
    that failed in the run fails again, for the same reason.

    Raises:
        UserError: no shard of the run is finished.
    """

    def __init__(self, images: Folder) -> None:
        with rename_field(shards="images"):
            self.shards = open_shards(images)
        self.origin = str(self.shards.folder)
        self.root = self.origin if self.shards.folder.remote else str(Path(self.origin).resolve())
        self.counts = Tally()

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        if unfinished := self.shards.run.shards - len(self.shards.names):
            self.counts[_UNFINISHED] = unfinished
        for name, row in self.shards.rows():
            yield Planned(
                row["id"],
                row["source"],
                place=Place(f"{name}.tar", row["image_at"], row["image_bytes"]),
                earlier=Place(f"{name}.tar", row["json_at"], row["json_bytes"]),
                sample_sha256=row["sha256"],
                problem=f"it failed before, in {row['stage']}: {row['reason']}" if row["status"] == "failed" else "",
            )


class StoredSource:
    """The images of the finished shards of several runs, to write them again. Failed images are among them; the order
    is that of the plans, one run after the other. The place of each image is a `ShardRow`. `shards` are paths or URLs.

    Raises:
        UserError: a run has no finished shard.
    """

    over: OverShards | None = None
    """How the shards are read, see `map_shards`."""
    tool = ""
    """The tool in which people corrected the regions, such as `cvat`; empty if the regions are not changed."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """Settings of the new run that say what the source does."""

    def __init__(self, shards: list[str], selection: Selection | None = None) -> None:
        self.runs = [open_shards(folder) for folder in shards]
        self.selection = selection or Selection()
        self.counts = Tally()
        self.origin = ", ".join(str(run.folder) for run in self.runs)
        local = [str(Path(str(run.folder)).resolve()) for run in self.runs if not run.folder.remote]
        self.root = os.path.commonpath(local) if local else str(self.runs[0].folder)
        """The folder that holds all local runs; paths of remote ones are absolute."""

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        unknown = len(self.selection.named_keys)
        for shards in self.runs:
            self._note_unfinished(shards)
            prefix = self._prefix(shards)
            for images, left_out, named in map_shards(
                self.over, partial(_chosen, shards, self.selection, prefix), shards.names
            ):
                if left_out:
                    self.counts["images left out"] += left_out
                unknown -= named
                yield from images
        if unknown:
            self.counts["keys that no finished shard has"] = unknown

    def _note_unfinished(self, shards: ShardFolder) -> None:
        if unfinished := shards.run.shards - len(shards.names):
            self.counts[_UNFINISHED] += unfinished

    def _prefix(self, shards: ShardFolder) -> str:
        if shards.folder.remote:
            return "" if len(self.runs) == 1 else f"{shards.folder}/"
        below = os.path.relpath(Path(str(shards.folder)).resolve(), self.root)
        return "" if below == "." else f"{below}/"


def _chosen(shards: ShardFolder, selection: Selection, prefix: str, name: str) -> tuple[list[Planned], int, int]:
    """Return the chosen images of one shard, the number of the others, and how many have a key that is named."""
    rows = shards.index(name)
    images = []
    for number, row in enumerate(rows):
        if selection.takes(shards, name, row):
            place = ShardRow(f"{prefix}{name}.parquet", number, max(row["image_bytes"], 0))
            images.append(Planned(row["id"], row["source"], place=place, sample_sha256=row["sha256"]))
    named = sum(row["key"] in selection.named_keys for row in rows)
    return images, len(rows) - len(images), named
