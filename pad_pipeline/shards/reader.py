"""Reads samples of shards at the offsets in the indexes, without unpacking the tars."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError, printable
from pad_pipeline.geometry import PatchRule, select_patches
from pad_pipeline.masks import check_mask, check_sizes
from pad_pipeline.parquet import open_parquet
from pad_pipeline.records import INDEX_SCHEMA, MEMBERS, IndexRow, RegionJson, SampleJson, shard_name
from pad_pipeline.retries import StoreError
from pad_pipeline.shards.keys import is_key
from pad_pipeline.shards.rows import HELD, Rows, columns_of, held_rows, stored_rows
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.writer import TOTALS
from pad_pipeline.storage import Folder, folder_at
from pad_pipeline.threads import THREADS, Say, Track, map_ahead, untracked

_GROUP = 32
"""Shards whose index rows are filtered in one call, which takes two thirds of the time."""
_USED = ["key", "status", "labels", *(f"{member}_{part}" for member in MEMBERS for part in ("at", "bytes"))]
_LABELS_SHOWN, _LETTERS_SHOWN = 8, 40
_BETWEEN = 64 << 10
"""The highest number of bytes of headers and padding between the members of a sample."""
_ASKED = 64
"""The most shards that are looked up one by one, because a store does not list them."""
_TAIL = 64 << 10
"""Bytes at the end of an index, in which its metadata usually is."""
_INDEX = re.compile(r"pad-([0-9]{6}|[1-9][0-9]{6,8})\.parquet")


@dataclass(repr=False)
class Sample:
    """The four members of one image in a shard."""

    key: str
    image: bytes
    """The bytes of the original image file."""
    meta: SampleJson
    """The JSON member."""
    coverage: np.ndarray
    """The coverage of each region, uint8 `[R, grid, grid]`, 0..255."""
    embeds: np.ndarray
    """The embeddings of the distinct labels, float16 `[L, d]`."""

    def __repr__(self) -> str:
        """Return the key, the size and the labels, on one short line."""
        labels = list(dict.fromkeys(region["label"] for region in self.meta["regions"]))
        named = ", ".join(label[:_LETTERS_SHOWN] for label in labels[:_LABELS_SHOWN])
        named += ", ..." if len(labels) > _LABELS_SHOWN else ""
        size, number = f"{self.meta['width']} x {self.meta['height']} pixels", len(self.meta["regions"])
        return printable(f"<{self.key}: {size}, {number} region{'s' * (number != 1)}{': ' + named if named else ''}>")

    def patches(self, rule: PatchRule = "soft") -> np.ndarray:
        """Return the weight of each patch for each region, uint8 `[R, grid, grid]`, 0..255; see `PatchRule`."""
        return select_patches(self.coverage, rule)

    def region_embeds(self) -> np.ndarray:
        """Return the label embedding of each region, float16 `[R, d]`."""
        return self.embeds[[region["embedding"] for region in self.meta["regions"]]]

    def checked_regions(self) -> list[RegionJson]:
        """Return the regions; raise `UserError` if one has no valid mask of the image's size.

        Shards can come from unknown authors, and pycocotools does not check masks.
        """
        for number, region in enumerate(self.meta["regions"]):
            try:
                check_mask(region["rle"], self.meta["width"], self.meta["height"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                where, rule = f"mask {number} of {self.key}", f"it can't be used ({type(error).__name__}: {error})"
                raise UserError("shards", where, rule, "see `pad verify` with `deep`") from error
        return self.meta["regions"]


def load_npy(content: bytes, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """Read an array of a known shape and type from a `.npy` file of unknown origin; raise `ValueError` if the bytes are
    not such an array. Nothing is allocated or unpickled before this check."""
    # NumPy's reader evaluates the header as Python code, which Python 3.11 can't do in two threads at once.
    dtype = np.dtype(kind)
    expected = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape}, }}"
    if content[:6] != b"\x93NUMPY" or content[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("it is not an array")
    start = 10 if content[6] == 1 else 12
    stop = start + int.from_bytes(content[8:start], "little")
    header = content[start:stop].decode("latin1").strip()
    if header != expected:
        raise ValueError(f"it is an array {header[:200]} instead of {expected}")
    if len(content) - stop != dtype.itemsize * math.prod(shape):
        raise ValueError(f"an array of shape {shape} has {len(content) - stop} bytes")
    return np.frombuffer(content, dtype, offset=stop).reshape(shape).copy()


class ShardFolder:
    """Reads the finished shards of a run, whose folder is a path or a URL of an object store. Raise `UserError` if the
    folder holds no run; the methods raise it if an index or a tar is damaged."""

    def __init__(self, shards: str | Path | Folder) -> None:
        self.folder = folder_at(shards)
        self.run = Run.read(self.folder)
        numbers = {int(found[1]) for name, _ in self.folder.files() if (found := _INDEX.fullmatch(name))}
        if self.folder.remote:  # a listing may lack what was written a moment ago
            missing = (number for number in range(self.run.shards) if number not in numbers)
            asked = islice(missing, _ASKED)
            numbers |= {number for number in asked if self.folder.has(f"{shard_name(number)}.parquet")}
        self.names = [shard_name(number) for number in sorted(numbers) if number < self.run.shards]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the names in a copy for another process, because they would be sent there with every shard."""
        return self.__dict__ | {"names": []}

    def planned(self, name: str) -> int:
        """Return the number of images that the plan has in one shard."""
        number = int(name.removeprefix("pad-"))
        return min(self.run.shard_size, self.run.images - number * self.run.shard_size)

    def index(self, name: str) -> list[IndexRow]:
        """Return the rows of one shard's index."""
        rows: list[IndexRow] = self._index(name, INDEX_SCHEMA.names).to_pylist()
        return rows

    def _index(self, name: str, columns: list[str]) -> pa.Table:
        """Return columns of one shard's index, the key among them."""
        with self._read(f"{name}.parquet"):
            file = open_parquet(io.BytesIO(self.folder.read(f"{name}.parquet")))
            if file.metadata.num_rows > self.run.shard_size:
                raise ValueError(f"it has {file.metadata.num_rows} rows, but a shard has {self.run.shard_size} images")
            table = file.read(columns, use_threads=False)
            if any(column.null_count for column in table.columns):
                raise ValueError("a value is missing")
            wanted = pa.schema([INDEX_SCHEMA.field(column) for column in columns])
            table = table if table.schema.equals(wanted) else table.cast(wanted)
            keys = table["key"]  # most keys are usual ones, which need no slow `is_key`
            usual = pc.and_(pc.match_substring_regex(keys, "^[A-Za-z0-9_-]+$"), pc.less(pc.binary_length(keys), 100))
            if odd := [key for key in keys.filter(pc.invert(usual)).to_pylist() if not is_key(key)]:
                raise ValueError(f"{odd[0][:80]!r} is not a key that pad writes")
            return table

    def rows(self) -> Iterator[tuple[str, IndexRow]]:
        """Yield the shard's name and the index row of each image in the finished shards."""
        return ((name, row) for name in self.names for row in self.index(name))

    def usable(self, say: Say = lambda text: None, track: Track[pa.Table] = untracked) -> Rows:
        """Return the index rows of all images that did not fail. Those of a large run come from a file that is made
        once, see `stored_rows`. `say` receives the reason why it is made, and `track` shows the progress."""

        groups = [self.names[start : start + _GROUP] for start in range(0, len(self.names), _GROUP)]

        def tables() -> Iterator[pa.Table]:
            return map_ahead(self._usable, groups, THREADS, 2 * THREADS)

        if len(self.names) * self.run.shard_size <= HELD:
            return held_rows(tables())
        return stored_rows(
            self.folder, self.run, lambda: track(tables(), f"index, {_GROUP} shards at a time", len(groups)), say
        )

    def _usable(self, names: list[str]) -> pa.Table:
        """Return the usable rows of some shards with the columns that `Rows` has."""
        tables = [self._index(name, _USED) for name in names]
        try:
            numbered = zip(names, tables, strict=True)
            return columns_of({int(name.removeprefix("pad-")): table for name, table in numbered})
        except pa.ArrowInvalid:
            for name, table in zip(names, tables, strict=True):  # find the shard whose positions are too large
                with self._read(f"{name}.parquet"):
                    columns_of({int(name.removeprefix("pad-")): table})
            raise

    def members(self, name: str, row: IndexRow, image: bool = True) -> dict[str, bytes]:
        """Return the bytes of a sample's members by the names in `MEMBERS`; the image file only if `image` is true."""
        with self._read(f"{name}.tar"):
            wanted = [member for member in MEMBERS if image or member != "image"]
            starts, sizes = ([row[f"{member}_{part}"] for member in wanted] for part in ("at", "bytes"))
            first, last = min(starts), max(map(add, starts, sizes))
            # The members are adjacent, except for headers and padding, so one read is enough.
            if first < 0 or min(sizes) < 0:
                raise ValueError("the index has a negative offset or size")
            if last - first > sum(sizes) + _BETWEEN:
                raise ValueError("the members of a sample are far apart")
            content = self.folder.read_range(f"{name}.tar", first, last)
            if len(content) < last - first:
                raise ValueError("a member ends outside the tar")
            places = zip(wanted, starts, sizes, strict=True)
            return {member: content[at - first : at - first + size] for member, at, size in places}

    def sample(self, name: str, row: IndexRow, image: bool = True) -> Sample:
        """Return the sample of an index row. The arguments are the same as in `members`."""
        members = self.members(name, row, image)
        with self._read(f"{name}.tar"):
            meta = json.loads(members["json"])
            check_sizes(meta)
            regions = len(meta["regions"])
            coverage = load_npy(members["masks"], (regions, self.run.view.grid, self.run.view.grid), np.uint8)
            embeds = load_npy(members["embeds"], (row["labels"], self.run.embedding_width), np.float16)
            if not isinstance(meta["caption"], str):
                raise ValueError("the caption is not a text")
            for tag in meta["tags"]:
                if not isinstance(tag["label"], str) or not all(isinstance(name, str) for name in tag["sources"]):
                    raise ValueError("the label or a source of a tag is not a text")
            for region in meta["regions"]:
                if type(region["embedding"]) is not int or not 0 <= region["embedding"] < len(embeds):
                    raise ValueError(f"a region has the embedding {region['embedding']!r}, but there are {len(embeds)}")
                if not isinstance(region["label"], str) or not isinstance(region["crowd"], bool):
                    raise ValueError("the label or the crowd flag of a region has the wrong type")
            return Sample(row["key"], members.get("image", b""), meta, coverage, embeds)

    @contextmanager
    def _read(self, file: str) -> Iterator[None]:
        """Turn any exception of the block into a `UserError`, which says that `file` is damaged. A `StoreError` says
        nothing about the file, and stays."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # parsers of unknown bytes may raise anything
            rule = f"it is damaged ({type(error).__name__}: {error})"
            raise UserError("shards", f"{self.folder}/{file}", rule, f"see `pad verify {self.folder}`") from error


def index_facts(folder: Folder, name: str, size: int | None = None) -> dict[bytes, bytes]:
    """Return the metadata of a shard's index: `run`, `tar_sha256`, `tar_bytes` and `totals`. Rows are not read. Raise
    `OSError` or `pa.ArrowException` if the index can't be read.

    With the `size` of the index, its end is read at once: in an object store, that is one request in place of three.
    """
    if size is not None:
        with suppress(pa.ArrowException):  # its metadata is longer, or its size has changed since
            tail = folder.read_range(f"{name}.parquet", max(size - _TAIL, 0), size)
            return pq.read_metadata(io.BytesIO(tail)).metadata or {}
    with folder.open(f"{name}.parquet") as stream:
        return pq.read_metadata(stream).metadata or {}


def totals_in(facts: dict[bytes, bytes]) -> dict[str, int]:
    """Return the `TOTALS` in the `index_facts` of a shard; raise `ValueError` if they are missing or are no counts."""
    try:
        totals = json.loads(facts[b"totals"])
        counts = {name: int(totals[name]) for name in TOTALS}
    except (ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"its totals can't be read ({type(error).__name__}: {error})") from error
    if min(counts.values()) < 0:
        raise ValueError("a total is below 0")
    return counts


def open_shards(shards: str | Path | Folder) -> ShardFolder:
    """Return the finished shards in a run's folder; raise `UserError` if there is no run or no finished shard."""
    found = ShardFolder(shards)
    if not found.names:
        raise UserError("shards", shards, "no shard in it is finished", "run the `pad build` that made it again")
    return found
