"""Read shards by offset from their indexes, without unpacking."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import PatchRule, select_patches
from pad_pipeline.records import INDEX_SCHEMA, shard_name
from pad_pipeline.shards.keys import is_key
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.writer import MEMBERS, TOTALS
from pad_pipeline.storage import Folder, folder_at

_USED = ["key", "labels", *(f"{member}_{part}" for member in MEMBERS for part in ("at", "bytes"))]
_BETWEEN = 64 << 10
"""Bytes of headers and padding that may stand between the members of one sample."""
_INDEX = re.compile(r"pad-([0-9]{6}|[1-9][0-9]{6,8})\.parquet")


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

    def patches(self, rule: PatchRule = "soft") -> np.ndarray:
        """uint8 `[R, grid, grid]`: how much each patch belongs to each region, see `PatchRule`."""
        return select_patches(self.coverage, rule)

    def region_embeds(self) -> np.ndarray:
        """float16 `[R, d]`: the label embedding of each region."""
        return self.embeds[[region["embedding"] for region in self.meta["regions"]]]


def load_npy(content: bytes, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """An array from outside bytes.

    Raises:
        ValueError: it is none, or of another shape or type (such as objects, which would be a pickle): found out before
            anything is allocated.
    """
    # NumPy's own reader evaluates the header as Python, which Python 3.11 can't do in two threads at once.
    dtype = np.dtype(kind)
    wanted = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape}, }}"
    if content[:6] != b"\x93NUMPY" or content[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("no array stands where one should be")
    start = 10 if content[6] == 1 else 12
    stop = start + int.from_bytes(content[8:start], "little")
    found = content[start:stop].decode("latin1").strip()
    if found != wanted:
        raise ValueError(f"an array of {found[:200]} stands where {wanted} should be")
    if len(content) - stop != dtype.itemsize * math.prod(shape):
        raise ValueError(f"an array of {shape} has {len(content) - stop} bytes")
    return np.frombuffer(content, dtype, offset=stop).reshape(shape).copy()


class Rows:
    """Index rows of many shards, at a hundred bytes each."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> tuple[str, dict[str, Any]]:
        """The shard's name, and of the index row what `ShardFolder.sample` asks for."""
        row = self._table.slice(number, 1).to_pylist()[0]
        return row.pop("shard"), row


class ShardFolder:
    """The finished shards of a run.

    Args:
        shards: the run's folder: a path, or a URL of an object store.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, shards: str | Path | Folder) -> None:
        self.folder = folder_at(shards)
        self.run = Run.read(self.folder)
        numbers = (int(found[1]) for name, _ in self.folder.files() if (found := _INDEX.fullmatch(name)))
        self.names = [shard_name(number) for number in sorted(set(numbers)) if number < self.run.shards]

    def index(self, name: str) -> list[dict[str, Any]]:
        """The rows of one shard's index.

        Raises:
            UserError: it is damaged.
        """
        try:
            # Not `read_table`: where that raises it leaves threads at work, and a process that ends then may abort.
            file = pq.ParquetFile(io.BytesIO(self.folder.read(f"{name}.parquet")))
            if file.metadata.num_rows > self.run.shard_size:
                raise ValueError(f"it has {file.metadata.num_rows} rows, and a shard {self.run.shard_size} images")
            table = file.read(INDEX_SCHEMA.names, use_threads=False)
            if any(column.null_count for column in table.columns):
                raise ValueError("a value is missing")
            rows = table.cast(INDEX_SCHEMA).to_pylist()
            if odd := [row["key"] for row in rows if not is_key(row["key"])]:
                raise ValueError(f"{odd[0][:80]!r} is no key of pad's")
            return rows
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{name}.parquet", error) from error

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every image of every finished shard: the shard's name and the index row."""
        for name in self.names:
            for row in self.index(name):
                yield name, row

    def usable(self) -> Rows:
        """Every image of every finished shard that did not fail, by number."""
        parts = []
        for name in self.names:
            rows = [row for row in self.index(name) if row["status"] != "failed"]
            columns = {column: [row[column] for row in rows] for column in _USED}
            parts.append(pa.table({"shard": pa.repeat(name, len(rows)).dictionary_encode(), **columns}))
        return Rows(pa.concat_tables(parts, promote_options="permissive").combine_chunks())

    def members(self, name: str, row: dict[str, Any], image: bool = True) -> dict[str, bytes]:
        """The sample behind one index row of shard `name`, as it stands in the tar: by `MEMBERS`' names; without its
        image file where `image` is false.

        Raises:
            UserError: the tar is damaged.
        """
        try:
            positions = {
                member: (row[f"{member}_at"], row[f"{member}_bytes"])
                for member in MEMBERS
                if image or member != "image"
            }
            first, last = min(at for at, _ in positions.values()), max(at + size for at, size in positions.values())
            # They lie side by side, so one read is enough; what stands between them are headers.
            if first < 0 or min(size for _, size in positions.values()) < 0:
                raise ValueError("a member lies before the tar's beginning")
            if last - first > sum(size for _, size in positions.values()) + _BETWEEN:
                raise ValueError("its members lie far apart")
            content = self.folder.part(f"{name}.tar", first, last)
            if len(content) < last - first:
                raise ValueError("a member does not lie inside the tar")
            return {member: content[at - first : at - first + size] for member, (at, size) in positions.items()}
        except Exception as error:
            raise self._damaged(f"{name}.tar", error) from error

    def sample(self, name: str, row: dict[str, Any], image: bool = True) -> Sample:
        """The sample behind one index row of shard `name`; without its image file where `image` is false.

        Raises:
            UserError: the tar is damaged.
        """
        members = self.members(name, row, image)
        try:
            meta = json.loads(members["json"])
            regions = len(meta["regions"])
            coverage = load_npy(members["masks"], (regions, self.run.view.grid, self.run.view.grid), np.uint8)
            embeds = load_npy(members["embeds"], (row["labels"], self.run.embedding_width), np.float16)
            if not isinstance(meta["caption"], str):
                raise ValueError("its caption is no text")
            for region in meta["regions"]:
                if type(region["embedding"]) is not int or not 0 <= region["embedding"] < len(embeds):
                    raise ValueError(f"a region names the embedding {region['embedding']!r} of {len(embeds)}")
                if not isinstance(region["label"], str) or not isinstance(region["crowd"], bool):
                    raise ValueError("a region's label or crowd is of the wrong type")
            return Sample(row["key"], members.get("image", b""), meta, coverage, embeds)
        except Exception as error:  # outside bytes: whatever a parser trips over is what is wrong
            raise self._damaged(f"{name}.tar", error) from error

    def _damaged(self, file: str, error: Exception) -> UserError:
        rule = f"it is damaged ({type(error).__name__}: {error})"
        return UserError("shards", f"{self.folder}/{file}", rule, f"see `pad verify {self.folder}`")


def index_facts(folder: Folder, name: str) -> dict[bytes, bytes]:
    """What stands at the end of a shard's index, read without the rows: `run`, `tar_sha256`, `tar_bytes`, `totals`.

    Raises:
        OSError, pa.ArrowException: it can't be read.
    """
    with folder.open(f"{name}.parquet") as stream:
        return pq.read_metadata(stream).metadata or {}


def totals_in(facts: dict[bytes, bytes]) -> dict[str, int]:
    """`TOTALS` of a shard, from `index_facts`.

    Raises:
        ValueError: they are not there, or no counts.
    """
    try:
        totals = json.loads(facts[b"totals"])
        counts = {name: int(totals[name]) for name in TOTALS}
    except (ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"its totals can't be read ({type(error).__name__}: {error})") from error
    if min(counts.values()) < 0:
        raise ValueError("a total is below 0")
    return counts


def open_shards(shards: str | Path | Folder) -> ShardFolder:
    """Return the finished shards of a run's folder.

    Raises:
        UserError: there is no run in it, or no finished shard.
    """
    found = ShardFolder(shards)
    if not found.names:
        raise UserError("shards", shards, "no shard in it is finished", "run the `pad build` that made it again")
    return found
