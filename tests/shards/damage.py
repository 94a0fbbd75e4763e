"""Ways to damage a run, and to make its hashes and seals right again, as somebody does who knows the format."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError
from pad_pipeline.records import INDEX_SCHEMA, ImageRecord, Shard
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.verify import verify_run
from tests.shards.builders import FIRST, restored

Change = Callable[[Path], object]


def problems(folder: Path, deep: bool = False) -> list[str]:
    """What `verify_run` finds; a run that it can't open at all is one of them."""
    found = []
    try:
        for name, wrong in verify_run(folder, deep):
            found += [f"{name}: {problem}" for problem in wrong]
    except UserError as error:
        found.append(f"refused: {error}")
    return found


def index_rows(folder: Path, name: str = FIRST) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()  # type: ignore[no-any-return]


def reseal(path: Path, change: Callable[[list[dict[str, Any]]], object] = lambda rows: None, **facts: str) -> None:
    """An index changed by somebody who knows how it is made: its rows, and what stands at its end; sealed again."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    noted = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    schema = INDEX_SCHEMA.with_metadata(noted | facts | {"seal": UNSEALED})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")
    seal(path)


def accept_tar(folder: Path, name: str = FIRST) -> None:
    """The index says that this is the tar that was written."""
    content = (folder / f"{name}.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    reseal(folder / f"{name}.parquet", tar_sha256=digest, tar_bytes=str(len(content)))


def rewrite(folder: Path, change: Callable[[ImageRecord], object]) -> None:
    """The first shard written anew, by pad's own writer, with a change to its first record: all hashes are right."""
    shards = ShardFolder(folder)
    rows = restored(shards, FIRST)
    change(rows[0])
    write_shard(Shard(0, rows), shards.folder, shards.run.identity)


def plainly(path: Path) -> bytes:
    """A Parquet file without compression and dictionaries, so that a changed byte is a changed value."""
    stream = io.BytesIO()
    pq.write_table(pq.read_table(path), stream, compression="none", use_dictionary=False)
    return stream.getvalue()


def mended(tar: bytes, spots: Sequence[int]) -> bytes:
    """A tar whose headers' checksums are right, so that what a header says is believed."""
    changed = bytearray(tar)
    for at in spots:
        header = at - at % tarfile.BLOCKSIZE
        block = changed[header : header + tarfile.BLOCKSIZE]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            changed[header : header + tarfile.BLOCKSIZE] = block
    return bytes(changed)
