"""Which image is in which shard at which row: made once, before any model runs."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.records import ImageRecord
from pad_pipeline.shards.files import atomic_path
from pad_pipeline.sources import Planned, Source

PLAN_NAME = "plan.parquet"
PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("bytes", pa.int64()),
        ("caption", pa.string()),
        ("conversations", pa.string()),
        ("annotations", pa.string()),
        ("problem", pa.string()),
    ]
)
"""One row per image. `row` counts inside its shard; `bytes` is the file's size when planned, -1 where it is missing."""


def write_plan(source: Source, path: Path, shard_size: int) -> tuple[int, int, str]:
    """Plan the images of a source: one Parquet row group a shard, so that a worker reads its shard alone.

    Args:
        source: where the images are.
        path: the plan to write (atomically).
        shard_size: images in one shard.

    Returns:
        The number of images, how many of their files are there, and a sha256 over all that the plan says.
    """
    digest, images, there, taken = hashlib.sha256(), 0, 0, set[str]()
    rows: list[dict] = []
    with atomic_path(path) as partial, pq.ParquetWriter(partial, PLAN_SCHEMA, compression="zstd") as writer:
        for planned in source:
            key = _unique_key(planned.id, taken)
            if key != _plain_key(planned.id):
                source.counts["repeated ids, kept under keys of their own"] += 1
            rows.append(_row(planned, key, source.root, images // shard_size, images % shard_size))
            there += rows[-1]["bytes"] >= 0
            digest.update(json.dumps(rows[-1]).encode())
            images += 1
            if len(rows) == shard_size:
                writer.write_table(pa.Table.from_pylist(rows, PLAN_SCHEMA))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, PLAN_SCHEMA))
    return images, there, digest.hexdigest()


def _row(planned: Planned, key: str, root: Path, shard: int, row: int) -> dict:
    try:
        size = -1 if planned.problem else (root / planned.source).stat().st_size
    except OSError:  # found out again, and reported as a failed row, when the image is read
        size = -1
    return {
        "shard": shard,
        "row": row,
        "key": key,
        "id": planned.id,
        "source": planned.source,
        "bytes": size,
        "caption": planned.caption,
        "conversations": json.dumps(planned.conversations),
        "annotations": json.dumps(planned.annotations),
        "problem": planned.problem,
    }


def _plain_key(name: str) -> str:
    """The id as a tar member's name: letters, digits, `-` and `_`; no dot, because readers split there. 120 bytes at
    most, so that every file system can hold the members."""
    plain = "".join(
        letter if letter.isalnum() or letter in "-_" else "_" for letter in unicodedata.normalize("NFC", name)
    )
    return plain.encode()[:120].decode(errors="ignore") or "image"


def _unique_key(name: str, taken: set[str]) -> str:
    key, copy = (plain := _plain_key(name)), 1
    while key in taken:
        copy += 1
        key = f"{plain}-{copy}"
    taken.add(key)
    return key


class Plan:
    """A written plan, read one shard at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)

    def __len__(self) -> int:
        """The number of shards."""
        return self._file.num_row_groups

    @property
    def images(self) -> int:
        """The number of images in all shards."""
        return self._file.metadata.num_rows

    def shard(self, number: int) -> list[ImageRecord]:
        """The images of one shard; those that the source could not use have failed already."""
        records = []
        for row in self._file.read_row_group(number).to_pylist():
            record = ImageRecord(
                row["key"],
                row["id"],
                row["source"],
                row["caption"],
                json.loads(row["conversations"]),
                json.loads(row["annotations"]),
            )
            if row["problem"]:
                record.fail("plan", row["problem"])
            records.append(record)
        return records

    def keys(self) -> Iterator[list[str]]:
        """The keys of each shard in turn."""
        for number in range(len(self)):
            yield self._file.read_row_group(number, columns=["key"])["key"].to_pylist()
