"""Read shards by offset from their indexes, without unpacking."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME
from pad_pipeline.records import shard_name
from pad_pipeline.shards.run import Run


@dataclass
class Sample:
    """One image as it stands in a shard."""

    key: str
    image: bytes
    """The original file."""
    meta: dict[str, Any]
    """The JSON member."""
    coverage: np.ndarray
    """uint8 `[R, grid, grid]`."""
    embeds: np.ndarray
    """float16 `[L, d]`."""

    def region_embeds(self) -> np.ndarray:
        """float16 `[R, d]`: the label embedding of each region."""
        return self.embeds[[region["embedding"] for region in self.meta["regions"]]]


def load_npy(content: bytes) -> np.ndarray:
    """An array from outside bytes; an array of objects, which would be a pickle, is an error."""
    return np.load(io.BytesIO(content), allow_pickle=False)


class ShardFolder:
    """The finished shards of a run.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: Path, field: str = "shards") -> None:
        self.folder = folder
        self.run = Run.read(folder, field)
        self.names = [name for name in map(shard_name, range(self.run.shards)) if self.index_path(name).is_file()]

    def index_path(self, name: str) -> Path:
        """The index of one shard."""
        return self.folder / f"{name}.parquet"

    @property
    def plan_path(self) -> Path:
        """The run's plan."""
        return self.folder / PLAN_NAME

    def index(self, name: str) -> list[dict[str, Any]]:
        """The rows of one shard's index."""
        return pq.read_table(self.index_path(name)).to_pylist()

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every image of every finished shard: the shard's name and the index row."""
        for name in self.names:
            for row in self.index(name):
                yield name, row

    def sample(self, name: str, row: dict[str, Any]) -> Sample:
        """The sample behind one index row of shard `name`."""
        with (self.folder / f"{name}.tar").open("rb") as tar:
            members = {}
            for member in ("image", "json", "masks", "embeds"):
                tar.seek(row[f"{member}_at"])
                members[member] = tar.read(row[f"{member}_bytes"])
        meta = json.loads(members["json"])
        return Sample(row["key"], members["image"], meta, load_npy(members["masks"]), load_npy(members["embeds"]))


def open_shards(folder: Path, field: str = "shards") -> ShardFolder:
    """The finished shards of `folder`.

    Raises:
        UserError: there is no run in it, or no finished shard.
    """
    shards = ShardFolder(folder, field)
    if not shards.names:
        raise UserError(field, folder, "no shard in it is finished", "run the `pad build` that made it again")
    return shards
