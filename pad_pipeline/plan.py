"""Which image is in which shard at which row: made once, before any model runs, in memory that does not grow."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.records import MISSING, UNKNOWN, ImageRecord, Place
from pad_pipeline.shards.keys import KeyHashes, numbered, plain_key, scratch_folder
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.sources.base import Planned, Source
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.storage import Folder, is_url

PLAN_NAME = "plan.parquet"
PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("at", pa.int64()),
        ("bytes", pa.int64()),
        ("earlier_at", pa.int64()),
        ("earlier_bytes", pa.int64()),
        ("caption", pa.string()),
        ("conversations", pa.string()),
        ("annotations", pa.string()),
        ("sha256", pa.string()),
        ("problem", pa.string()),
    ]
)
"""One row per image, in the order of `Planned`. `row` counts inside its shard; `bytes` is the image's size when it was
planned, or `UNKNOWN`, or `MISSING`."""

Depth = Literal["names", "sizes", "sample", "full"]
GROUP = 4096
"""Rows in one Parquet row group; a worker reads the groups of its shard alone."""
SAMPLE = 64
"""Images whose content is hashed at the depth `sample`."""
_MOST_HASHED = 1 << 30


@dataclass
class PlanFacts:
    """What a plan comes to."""

    images: int = 0
    there: int = 0
    """Images that were there when they were planned, or whose presence only a read will tell."""
    bytes: int = 0
    """Of the images whose size is known."""
    digest: str = ""
    """sha256 over all that the plan says."""
    seal: str = ""
    """sha256 of the written file."""
    sample: dict[str, str] = field(default_factory=dict)
    """sha256 of the content of a few images, by key."""


def write_plan(
    source: Source, path: Path, shard_size: int, depth: Depth = "sizes", limit: int | None = None
) -> PlanFacts:
    """Plan the images of a source.

    Args:
        source: where the images are.
        path: the file to write.
        shard_size: images in one shard.
        depth: what is noted of each file beside its name: nothing (`names`), its size (`sizes`), that and the sha256
            of a few (`sample`), or of all (`full`).
        limit: take the first images alone.
    """
    facts, digest = PlanFacts(), hashlib.sha256()
    schema = PLAN_SCHEMA.with_metadata({"shard_size": str(shard_size), "seal": UNSEALED})
    chosen = _ContentSample()
    with scratch_folder() as scratch, _rare_collections():
        hashes = KeyHashes(Path(scratch))
        with (
            pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False) as writer,
            ThreadPoolExecutor(1) as behind,
        ):

            def write(table: pa.Table, content: bytes) -> None:
                digest.update(content)
                writer.write_table(table)

            # While one group is hashed and compressed, the next is read. These two are single calls that leave Python
            # to the reader; every step more would have to wait for it.
            written: Future[None] | None = None
            for group in _groups(islice(iter(source), limit)):
                columns = _columns(group, source.root, depth, facts.images, shard_size)
                if depth == "full":
                    columns["sha256"] = _hashed(group, columns["bytes"], source.root)
                if depth == "sample":
                    chosen.offer(group, columns)
                hashes.add(columns["key"])
                table = pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)
                facts.images += len(group)
                sizes, sound = table["bytes"].to_numpy(), pc.binary_length(table["problem"]).to_numpy() == 0
                facts.there += int((sound & (sizes != MISSING)).sum())
                facts.bytes += int(sizes[sizes > 0].sum())
                if written:
                    written.result()
                written = behind.submit(write, table, _content(table))
            if written:
                written.result()
        repeated = hashes.repeated()
        if len(repeated):
            _rename(path, schema, repeated, hashes)
            source.counts["repeated ids, kept under keys of their own"] += len(repeated)
    facts.seal = seal(path)
    facts.digest = digest.hexdigest()
    if depth == "sample":
        facts.sample = chosen.hashed(source.root)
    return facts


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cycles only where many objects pile up: a group of images, which holds none, is seen as such
    a pile over and over, at a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100 * GROUP, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _groups(planned: Iterable[Planned]) -> Iterator[list[Planned]]:
    iterator = iter(planned)
    try:
        while group := list(islice(iterator, GROUP)):
            yield group
    except OSError as error:
        where, rule = error.filename or "the source", f"it can't be read ({error.strerror or error})"
        raise UserError("images", where, rule, "mend it, then run the same command again") from error


def _columns(group: list[Planned], root: str, depth: Depth, first: int, shard_size: int) -> dict[str, Any]:
    """The values of each column for the images of a group, the first of which has the number `first`."""
    numbers = np.arange(first, first + len(group))
    sizes = [UNKNOWN if one.size is None else one.size for one in group]
    if depth != "names" and not is_url(root):
        sizes = [
            _size(one, root) if one.size is None and not one.problem else size
            for one, size in zip(group, sizes, strict=True)
        ]
    return {
        "shard": (numbers // shard_size).astype(np.int32),
        "row": (numbers % shard_size).astype(np.int32),
        "key": [plain_key(one.id) for one in group],
        "id": [one.id for one in group],
        "source": [one.source for one in group],
        "file": [one.file for one in group],
        "at": [one.at for one in group],
        "bytes": sizes,
        "earlier_at": [one.earlier_at for one in group],
        "earlier_bytes": [one.earlier_bytes for one in group],
        "caption": [one.caption for one in group],
        "conversations": [orjson.dumps(one.conversations).decode() if one.conversations else "[]" for one in group],
        "annotations": [json.dumps(one.annotations) if one.annotations else "[]" for one in group],
        "sha256": [one.sha256 for one in group],
        "problem": [one.problem for one in group],
    }


def _size(planned: Planned, root: str) -> int:
    if is_url(planned.source):
        return UNKNOWN
    try:
        return os.stat(f"{root}/{planned.source}").st_size  # noqa: PTH116 (a Path for each of millions is slow)
    except (OSError, ValueError):  # found out again, and reported as a failed row, when the image is read
        return MISSING


def _content(table: pa.Table) -> bytes:
    """Every value of every column, each with its length, so that no two tables give the same bytes."""
    parts: list[Any] = []
    for column in table.combine_chunks().columns:
        values = column.chunk(0)
        if pa.types.is_string(values.type):
            parts.append(pc.binary_length(values).to_numpy().astype("<i8").tobytes())
            _, offsets, data = values.buffers()
            end = int(np.frombuffer(offsets, "<i4", 1, 4 * (values.offset + len(values)))[0])
            start = int(np.frombuffer(offsets, "<i4", 1, 4 * values.offset)[0])
            parts.append(memoryview(data)[start:end] if data else b"")
        else:
            parts.append(values.to_numpy().astype("<i8").tobytes())
    return b"".join(parts)


class _ContentSample:
    """The images whose keys have the smallest checksums: as good as drawn by lot, and the same in whatever order they
    come. Of those that share a key the first, for it is the one that keeps it."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, str, Planned, int]] = []

    def offer(self, group: list[Planned], columns: dict[str, Any]) -> None:
        sums = np.array([zlib.crc32(key.encode()) for key in columns["key"]])
        _, first = np.unique(sums, return_index=True)
        offered = [(int(sums[n]), columns["key"][n], group[n], columns["bytes"][n]) for n in first[:SAMPLE]]
        kept = {entry[0]: entry for entry in [*offered, *self.kept]}
        self.kept = [kept[value] for value in sorted(kept)[:SAMPLE]]

    def hashed(self, root: str) -> dict[str, str]:
        keys = [key for _, key, _, _ in self.kept]
        found = _hashed([one for _, _, one, _ in self.kept], [size for *_, size in self.kept], root)
        return dict(sorted(zip(keys, found, strict=True)))


def _hashed(group: list[Planned], sizes: list[int], root: str) -> list[str]:
    """sha256 of what each image holds; empty where it can't be read, for that will be a failed row."""

    def content_sha256(planned: Planned, size: int) -> str:
        if planned.problem or planned.sha256:
            return planned.sha256
        try:
            place = Place(planned.file or planned.source, planned.at, size)
            return hashlib.sha256(read_bytes(root, place, _MOST_HASHED)).hexdigest()
        except BadImage:
            return ""

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(content_sha256, group, sizes))


def _rename(path: Path, schema: pa.Schema, repeated: np.ndarray, hashes: KeyHashes) -> None:
    """Write the plan again with a key of their own for the rows that repeat one."""
    second = path.with_name(f".{PLAN_NAME}.{secrets.token_hex(6)}.partial")  # a name that `Folder.clean` knows

    def in_order() -> Iterator[tuple[int, str]]:
        at = 0
        with closing(pq.ParquetFile(path)) as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["key"], use_threads=False)["key"]
                while at < len(repeated) and repeated[at] < group * GROUP + len(keys):
                    yield int(repeated[at]), keys[int(repeated[at]) - group * GROUP].as_py()
                    at += 1

    try:
        named = numbered(in_order(), hashes)
        row, own = next(named)
        with (
            closing(pq.ParquetFile(path)) as first,
            pq.ParquetWriter(second, schema, compression="zstd", write_statistics=False) as writer,
        ):
            for group in range(first.num_row_groups):
                table = first.read_row_group(group, use_threads=False)
                if row < group * GROUP + len(table):
                    keys = table["key"].to_pylist()
                    while row < group * GROUP + len(keys):
                        keys[row - group * GROUP] = own
                        row, own = next(named, (1 << 62, ""))
                    table = table.set_column(schema.get_field_index("key"), schema.field("key"), pa.array(keys))
                writer.write_table(table)
        second.replace(path)
    finally:
        second.unlink(missing_ok=True)


class Plan:
    """A written plan, read one shard at a time.

    Raises:
        UserError: it can't be read.
    """

    def __init__(self, folder: Folder, name: str = PLAN_NAME) -> None:
        self.folder = folder
        try:
            self._file = pq.ParquetFile(folder.open(name))
            if self._file.schema_arrow.names != PLAN_SCHEMA.names:
                raise ValueError("it has other columns than this version of pad writes")
            self.shard_size = int(self._file.schema_arrow.metadata[b"shard_size"])
            if self.shard_size < 1:
                raise ValueError(f"it says that a shard has {self.shard_size} images")
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        self._held: tuple[int, pa.Table] = (-1, None)

    def __len__(self) -> int:
        """The number of shards."""
        return -(-self.images // self.shard_size)

    @property
    def images(self) -> int:
        """The number of images in all shards."""
        return int(self._file.metadata.num_rows)

    def rows(self, number: int) -> list[dict[str, Any]]:
        """What is planned for shard `number`, a row for each image."""
        start, stop = number * self.shard_size, min((number + 1) * self.shard_size, self.images)
        parts = []
        for group in range(start // GROUP, -(-stop // GROUP)):
            if self._held[0] != group:  # the next shard usually begins where this one ends
                try:
                    self._held = group, self._file.read_row_group(group, use_threads=False)
                except (OSError, pa.ArrowException, ValueError) as error:
                    raise self._unreadable(error) from error
            first = max(start - group * GROUP, 0)
            parts.append(self._held[1].slice(first, stop - group * GROUP - first))
        try:
            table = pa.concat_tables(parts)
            if any(column.null_count for column in table.columns):
                raise ValueError("a value is missing")
            return table.to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise self._unreadable(error) from error

    def shard(self, number: int) -> list[ImageRecord]:
        """The images of one shard; those that the source could not use have failed already."""
        try:
            return [_record(row) for row in self.rows(number)]
        except (ValueError, TypeError, RecursionError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        rule = f"the plan can't be read ({error})"
        remedy = "run the command that made it again, into the same folder"
        return UserError("shards", f"{self.folder}/{PLAN_NAME}", rule, remedy)


def _record(row: dict[str, Any]) -> ImageRecord:
    record = ImageRecord(
        row["key"],
        row["id"],
        row["source"],
        row["caption"],
        json.loads(row["conversations"]),
        json.loads(row["annotations"]),
        place=Place(row["file"] or row["source"], row["at"], row["bytes"]),
        earlier=Place(row["file"], row["earlier_at"], row["earlier_bytes"]),
        sha256=row["sha256"],
    )
    if row["problem"]:
        record.fail("plan", row["problem"])
    return record
