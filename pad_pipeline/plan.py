"""The plan, which gives each image its shard and row. It is written before any model runs, in constant memory."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pad_pipeline.choices import Depth
from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.parquet import open_parquet
from pad_pipeline.records import MISSING, NOWHERE, UNKNOWN, ImageRecord, Place, Planned, ShardRow
from pad_pipeline.retries import StoreError
from pad_pipeline.shards.keys import KeyHashes, numbered, plain_key, scratch_folder
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.sources.base import Source, Tally
from pad_pipeline.sources.choose import SampleFirst, in_order
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.storage import Folder, atomic_write, is_url, store_of

PLAN_NAME = "plan.parquet"
PLAN_SCHEMA = pa.schema(
    dict.fromkeys(("shard", "row"), pa.int32())
    | dict.fromkeys(("key", "id", "source", "file"), pa.string())
    | dict.fromkeys(("at", "bytes", "earlier_at", "earlier_bytes"), pa.int64())
    | dict.fromkeys(("caption", "conversations", "annotations", "sha256", "problem"), pa.string())
)
"""Columns of plan.parquet, one row per image. `row` is the image's row in its shard. `file`, `at` and `bytes` are a
`Place`, or a `ShardRow` if shards are rewritten; `bytes` is the image's size at planning, `UNKNOWN` or `MISSING`.
`sha256` is the hash of the sample for an image that comes from shards, and otherwise the hash of the file's content."""
PlanRow = dict[str, Any]
"""One row of a plan, by column."""

GROUP = 4096
"""Rows in one Parquet row group; a worker reads only the groups of its shard."""
SAMPLE = 64
"""Images whose content is hashed at the depth `sample`."""
_MOST_HASHED = 1 << 30
"""Bytes of the largest file that is hashed."""
_RECORD = re.compile(r"(?:record|row|line|sample|image) .+?: ")
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_Candidate = tuple[int, str, Planned, int]
"""Checksum of its key, key, image and size of an image whose content may be hashed."""


@dataclass
class PlanFacts:
    """Totals and hashes of a plan."""

    images: int = 0
    there: int = 0
    """Images that existed when they were planned, or whose existence only a read will show."""
    bytes: int = 0
    """Total size of the images whose size is known."""
    digest: str = ""
    """sha256 over all values of the plan."""
    seal: str = ""
    """sha256 of the written file."""
    sample: dict[str, str] = field(default_factory=dict)
    """sha256 of the content of a few images, by key."""
    unreadable: str = ""
    """Why one of the images in `sample` can't be read; empty if all can."""
    captions: int = 0
    """Images with a caption."""
    conversations: int = 0
    """Images with a conversation."""
    problems: Tally = field(default_factory=Tally)
    """Images that the source could not use, by kind of problem: `_kind` of what the plan says of each."""
    others: Tally = field(default_factory=Tally)
    """Images in other stores than the source's own, by store. They are read with the user's credentials."""


def write_plan(
    source: Source,
    path: Path,
    shard_size: int,
    depth: Depth = "sizes",
    limit: int | None = None,
    private: bool = False,
    first: SampleFirst = SampleFirst(0),
) -> PlanFacts:
    """Write the plan of a source's images.

    Args:
        source: the images.
        path: the file to write.
        shard_size: images in one shard.
        depth: the facts that the plan has of each file: its name (`names`), its size too (`sizes`), and the sha256 of
            a few files (`sample`) or of all files (`full`) too.
        limit: the number of images to take, from the first on; all by default.
        private: see `read_bytes`.
        first: a sample that comes before all other images, see `in_order`.
    """
    facts, digest = PlanFacts(), hashlib.sha256()
    own = {store_of(source.root), store_of(source.origin)}
    schema = PLAN_SCHEMA.with_metadata({"shard_size": str(shard_size), "seal": UNSEALED})
    sample: list[_Candidate] = []
    with scratch_folder() as scratch, _rare_collections():
        hashes = KeyHashes(Path(scratch))
        with _writer(path, schema) as writer, ThreadPoolExecutor(1) as behind:

            def write(table: pa.Table, content: bytes) -> None:
                digest.update(content)
                writer.write_table(table)

            # A thread hashes and compresses one group while this thread reads the next. Both are single calls that
            # release the GIL; any further step in that thread would have to wait for the reader.
            written: Future[None] | None = None
            for group in _groups(islice(in_order(source, first), limit)):
                columns = _columns(group, source.root, depth, facts.images, shard_size)
                if depth == "full":
                    columns["sha256"], _ = _hashed(group, columns["bytes"], source.root, private)
                if depth == "sample":
                    sample = _smallest(sample, group, columns)
                hashes.add(columns["key"])
                table = pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)
                facts.images += len(group)
                sizes, sound = table["bytes"].to_numpy(), pc.binary_length(table["problem"]).to_numpy() == 0
                facts.there += int((sound & (sizes != MISSING)).sum())
                facts.bytes += int(sizes[sizes > 0].sum())
                facts.captions += len(group) - columns["caption"].count("")
                facts.conversations += len(group) - columns["conversations"].count("[]")
                for one in group:
                    if one.problem:
                        facts.problems.note(_kind(one.problem), one.problem)
                    elif (store := store_of(file := one.place[0] or one.source)) and store not in own:
                        facts.others.note(store, file)
                if written:
                    written.result()
                written = behind.submit(write, table, _content(table))
            if written:
                written.result()
        # Give keys of their own to rows whose key is taken.
        repeated = hashes.repeated()
        if len(repeated):
            _rename(path, schema, repeated, hashes)
            source.counts["repeated ids, kept under keys of their own"] += len(repeated)
    facts.seal, facts.digest = seal(path), digest.hexdigest()
    if sample:
        images, sizes = [image for _, _, image, _ in sample], [size for *_, size in sample]
        hashed, facts.unreadable = _hashed(images, sizes, source.root, private)
        facts.sample = dict(sorted(zip([key for _, key, _, _ in sample], hashed, strict=True)))
    return facts


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Make Python's search for reference cycles rare. A group of images has many objects and no cycles, but triggers
    the search again and again, which takes a fifth of the time."""
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
        raise UserError("images", where, rule, "repair it, then run the same command again") from error


def _columns(group: list[Planned], root: str, depth: Depth, first: int, shard_size: int) -> dict[str, Any]:
    """Return the values of each column for a group of images; `first` is the number of its first image."""
    numbers = np.arange(first, first + len(group))
    sizes = [one.place[2] for one in group]
    if depth != "names" and not is_url(root):
        sizes = [
            _size(one, root) if one.place is NOWHERE and not one.problem else size
            for one, size in zip(group, sizes, strict=True)
        ]
    return {
        "shard": (numbers // shard_size).astype(np.int32),
        "row": (numbers % shard_size).astype(np.int32),
        "key": [plain_key(one.id) for one in group],
        "id": [one.id for one in group],
        "source": [one.source for one in group],
        "file": [one.place[0] for one in group],
        "at": [one.place[1] for one in group],
        "bytes": sizes,
        "earlier_at": [one.earlier[1] for one in group],
        "earlier_bytes": [max(one.earlier[2], 0) for one in group],
        "caption": [one.caption for one in group],
        "conversations": [orjson.dumps(one.conversations).decode() if one.conversations else "[]" for one in group],
        "annotations": [json.dumps(one.annotations) if one.annotations else "[]" for one in group],
        "sha256": [one.sample_sha256 or one.content_sha256 for one in group],
        "problem": [one.problem for one in group],
    }


def _kind(problem: str) -> str:
    """Return a problem without its record, its numbers and its quoted values, so that equal problems are counted as
    one."""
    return _VALUE.sub("...", _RECORD.sub("", problem, count=1))


def _size(planned: Planned, root: str) -> int:
    if is_url(planned.source):
        return UNKNOWN
    try:
        return os.stat(f"{root}/{planned.source}").st_size  # noqa: PTH116 (a Path for each of millions is slow)
    except (OSError, ValueError):  # the stage decode meets the same error, and reports it as a failed row
        return MISSING


def _content(table: pa.Table) -> bytes:
    """Return all values of all columns, texts with their lengths, so that different tables give different bytes."""
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


def _smallest(kept: list[_Candidate], group: list[Planned], columns: dict[str, Any]) -> list[_Candidate]:
    """Return the images of `kept` and of a group whose keys have the smallest checksums: as good as random, but
    independent of the order of the images. Of images with the same key, the first is taken: it keeps the key."""
    sums = np.array([zlib.crc32(key.encode()) for key in columns["key"]])
    _, first = np.unique(sums, return_index=True)
    offered = [(int(sums[n]), columns["key"][n], group[n], columns["bytes"][n]) for n in first[:SAMPLE]]
    by_sum = {entry[0]: entry for entry in [*offered, *kept]}
    return [by_sum[value] for value in sorted(by_sum)[:SAMPLE]]


def _hashed(group: list[Planned], sizes: list[int], root: str, private: bool) -> tuple[list[str], str]:
    """Return the sha256 of each image's content, and why one can't be read. The hash of such an image is empty; it will
    become a failed row."""
    reasons = [""]

    def content_sha256(planned: Planned, size: int) -> str:
        known = planned.sample_sha256 or planned.content_sha256
        if planned.problem or known:
            return known
        try:
            place = Place(planned.place[0] or planned.source, planned.place[1], size)
            return hashlib.sha256(read_bytes(root, place, _MOST_HASHED, private)).hexdigest()
        except BadImage as error:
            reasons.append(f"{planned.source}: {error}")
            return ""

    with ThreadPoolExecutor(16) as threads:
        hashed = list(threads.map(content_sha256, group, sizes))
    return hashed, reasons[-1]


def _rename(path: Path, schema: pa.Schema, repeated: np.ndarray, hashes: KeyHashes) -> None:
    """Write the plan again, with new keys for the `repeated` rows."""
    taken: deque[tuple[int, str]] = deque()
    renamed = numbered(iter(taken.popleft, None), hashes)  # one generator, because it counts the copies of each key
    with (
        atomic_write(path, durable=False) as second,
        open_parquet(path) as first,
        _writer(second, schema) as writer,
    ):
        for group in range(first.num_row_groups):
            table = first.read_row_group(group, use_threads=False)
            begin, end = np.searchsorted(repeated, [group * GROUP, group * GROUP + len(table)])
            if begin < end:
                keys = table["key"].to_pylist()
                for row in (repeated[begin:end] - group * GROUP).tolist():
                    taken.append((row, keys[row]))
                    _, keys[row] = next(renamed)
                table = table.set_column(schema.get_field_index("key"), schema.field("key"), pa.array(keys))
            writer.write_table(table)


class Plan:
    """A written plan, read one shard at a time.

    Raises:
        UserError: it can't be read.
    """

    def __init__(self, folder: Folder, name: str = PLAN_NAME) -> None:
        self.folder = folder
        with self._reading():
            self._file = open_parquet(folder.open(name))
            if self._file.schema_arrow.names != PLAN_SCHEMA.names:
                raise ValueError("it has other columns than this version of pad writes")
            self.shard_size = int(self._file.schema_arrow.metadata[b"shard_size"])
            if self.shard_size < 1:
                raise ValueError(f"it says that a shard has {self.shard_size} images")
        self._held: tuple[int, pa.Table] = (-1, None)

    def __len__(self) -> int:
        """The number of shards."""
        return -(-self.images // self.shard_size)

    @property
    def images(self) -> int:
        """The number of images in all shards."""
        return int(self._file.metadata.num_rows)

    @property
    def seal(self) -> str:
        """The sha256 in the plan's seal."""
        return str(self._file.schema_arrow.metadata[b"seal"].decode().rpartition(":")[2])

    def sample(self, root: str, contents: Collection[str], private: bool = False) -> tuple[dict[str, str], str]:
        """Return `PlanFacts.sample` and `PlanFacts.unreadable`, of the images with the keys `contents`.

        `root` is that of the source; for `private` see `read_bytes`.
        """
        found = {}
        wanted = pa.array([*contents], pa.string())
        with self._reading():
            for group in range(self._file.num_row_groups) if contents else ():
                keys = self._file.read_row_group(group, ["key"], use_threads=False)["key"]
                if pc.any(there := pc.is_in(keys, wanted)).as_py():
                    for row in self._file.read_row_group(group, use_threads=False).filter(there).to_pylist():
                        found[row["key"]] = row
        planned = [_planned(row) for row in found.values()]
        hashed, unreadable = _hashed(planned, [row["bytes"] for row in found.values()], root, private)
        return dict(sorted(zip(found, hashed, strict=True))), unreadable

    def rows(self, number: int) -> list[PlanRow]:
        """Return the plan's rows of shard `number`, one for each image."""
        start, stop = number * self.shard_size, min((number + 1) * self.shard_size, self.images)
        parts = []
        with self._reading():
            for group in range(start // GROUP, -(-stop // GROUP)):
                if self._held[0] != group:  # the next shard usually begins in the group where this one ends
                    self._held = group, self._file.read_row_group(group, use_threads=False)
                first = max(start - group * GROUP, 0)
                parts.append(self._held[1].slice(first, stop - group * GROUP - first))
            table = pa.concat_tables(parts)
            if any(column.null_count for column in table.columns):
                raise ValueError("a value is missing")
            rows: list[PlanRow] = table.to_pylist()
            return rows

    def shard(self, number: int, rewritten: bool = False) -> list[ImageRecord]:
        """Return the images of shard `number`; an image that the source could not use has the status `failed`.

        If shards are `rewritten`, the place of each image is a `ShardRow`.
        """
        with self._reading():
            return [_record(row, rewritten) for row in self.rows(number)]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, RecursionError) as error:
            where, remedy = f"{self.folder}/{PLAN_NAME}", "run the command that made it again, into the same folder"
            raise UserError("shards", where, f"the plan can't be read ({error})", remedy) from error


def _planned(row: PlanRow) -> Planned:
    """Return what `_hashed` needs of the image of a row."""
    place = Place(row["file"], row["at"], row["bytes"])
    known = {"sample_sha256" if row["earlier_at"] >= 0 else "content_sha256": row["sha256"]}
    return Planned(row["id"], row["source"], place=place, problem=row["problem"], **known)


def _record(row: PlanRow, rewritten: bool) -> ImageRecord:
    """Return the image of a row of the plan; the inverse of `_columns`."""
    annotated = row["earlier_at"] >= 0  # an earlier run annotated the image
    hashed = "sample_sha256" if rewritten or annotated else "content_sha256"
    place = (row["file"], row["at"], row["bytes"])
    record = ImageRecord(
        id=row["id"],
        source=row["source"],
        caption=row["caption"],
        conversations=json.loads(row["conversations"]),
        annotations=json.loads(row["annotations"]),
        place=ShardRow(*place) if rewritten else Place(row["file"] or row["source"], *place[1:]),
        earlier=Place(row["file"], row["earlier_at"], row["earlier_bytes"]) if annotated else NOWHERE,
        key=row["key"],
        **{hashed: row["sha256"]},
    )
    if row["problem"]:
        record.fail("plan", row["problem"])
    return record
