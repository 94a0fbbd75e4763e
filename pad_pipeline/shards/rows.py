"""The index rows of a whole run in one file, so that a training of 100 million images starts fast and in little memory.

The file is an Arrow IPC file, which is mapped into memory: the processes of a machine share its pages. It is made when
a large run is first read, and again when shards have changed since. Its seal shows damage (see `seal`).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pad_pipeline.records import MEMBERS, IndexRow, shard_name
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.seal import UNSEALED, check_seal, seal
from pad_pipeline.storage import Folder, atomic_write, resolved, write_error
from pad_pipeline.threads import Say

ROWS_NAME = ".training-index.arrow"
"""The file with the index rows of a run, in the run's folder, or under another name in pad's cache folder."""
HELD = 200_000
"""The rows of a run with at most this many images are held in memory, and no file is written."""
_GROUP = 1 << 16
"""Rows in one record batch of the file."""
_VERSION = "1"
_SCHEMA = pa.schema(
    {"shard": pa.int32(), "key": pa.string(), "labels": pa.int32(), "image_at": pa.int64()}
    # Distances from the image, because 32 bits are enough for them.
    | {f"{member}_at": pa.int32() for member in MEMBERS if member != "image"}
    | {f"{member}_bytes": pa.int32() for member in MEMBERS}
)


class Rows:
    """The index rows of many shards. Several threads may read at once."""

    def __init__(
        self, batches: list[pa.RecordBatch], path: Path | None = None, mapped: mmap.mmap | None = None
    ) -> None:
        """Take batches of `_GROUP` rows, the last one of fewer; for those of a file, its path and its mapped memory."""
        self._batches, self._path, self._mapped, self._reads = batches, path, mapped, count(1)

    def __reduce__(self) -> tuple[Any, ...]:  # for the workers of a data loader
        return (_mapped, (self._path,)) if self._path else (Rows, (self._batches,))

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def __getitem__(self, number: int) -> tuple[str, IndexRow]:
        """Return the name of the shard, and the columns of the index row that `ShardFolder.sample` needs."""
        row: IndexRow = self._batches[number // _GROUP].slice(number % _GROUP, 1).to_pylist()[0]
        for member in MEMBERS:
            if member != "image":
                row[f"{member}_at"] += row["image_at"]
        if self._mapped is not None and next(self._reads) % 4096 == 0:
            # The pages stay in the page cache; only this process lets go of them, so that its memory does not grow.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return shard_name(row.pop("shard")), row


def columns_of(shards: dict[int, pa.Table]) -> pa.Table:
    """Return the usable rows of shards, by their numbers, with the columns of the file.

    Raises:
        pa.ArrowInvalid: a position or a size is too large.
    """
    numbers = np.repeat(np.fromiter(shards, np.int32), [len(table) for table in shards.values()])
    table = pa.concat_tables(shards.values()).append_column("shard", pa.array(numbers))
    table = table.filter(pc.not_equal(table["status"], "failed"))
    columns = {}
    for name in _SCHEMA.names:
        far = name.endswith("_at") and name != "image_at"
        columns[name] = pc.subtract_checked(table[name], table["image_at"]) if far else table[name]
    return pa.table(columns).cast(_SCHEMA)


def held_rows(shards: Iterable[pa.Table]) -> Rows:
    """Hold the rows of shards, each from `columns_of`, in memory."""
    return Rows(list(_batches(shards)))


def stored_rows(folder: Folder, run: Run, shards: Callable[[], Iterator[pa.Table]], say: Say) -> Rows:
    """Map the file with the rows of a run, and make it first if it is missing, damaged, or older than a shard.

    Args:
        folder: the run's folder.
        run: its run.json.
        shards: reads the usable rows of each shard, as `columns_of` returns them.
        say: receives a line that says why the file is made.

    Raises:
        UserError: the file can't be written, neither into the run's folder nor into pad's cache folder.
    """
    facts = {"version": _VERSION, "shards": _state(folder, run)}
    cache = Path(os.path.expanduser(os.environ.get("PAD_CACHE", "~/.cache/pad")), "rows")  # noqa: PTH111 (as in weights)
    places = [cache / f"{hashlib.sha256(resolved(folder).encode()).hexdigest()[:32]}.arrow"]
    if not folder.remote:
        places.insert(0, folder.path / ROWS_NAME)
    refused = OSError()
    for path in places:
        if problem := _problem(path, facts):
            from filelock import FileLock  # a reader without pad's dependencies does not need it

            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock")):
                    if problem := _problem(path, facts):  # again, because another process may have made it meanwhile
                        say(f"The index of all samples is made, once: {path} {problem}.")
                        Folder(path.parent).clean(path.name)  # of a process that was killed
                        _write(path, facts, shards())
            except OSError as error:
                refused = error
                continue
        return _mapped(path)
    raise write_error(places[-1].parent, refused, "PAD_CACHE") from refused


def _state(folder: Folder, run: Run) -> str:
    """Return a sha256 that changes when a shard is written: over each file's size, and on a disk its time."""
    if folder.remote:
        files = [f"{name} {size}" for name, size in folder.files("pad-")]
    else:
        files = []
        with os.scandir(folder.path) as entries:
            for entry in entries:
                if entry.name.startswith("pad-"):
                    with suppress(FileNotFoundError):  # it may be gone since it was listed
                        files.append(f"{entry.name} {entry.stat().st_size} {entry.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join([run.identity, run.plan, *sorted(files)]).encode()).hexdigest()


def _problem(path: Path, facts: dict[str, str]) -> str:
    """Return why the file can't be used; empty if it can."""
    found: dict[bytes, bytes] = {}
    try:
        # For a damaged file, the check of the seal gives a better reason than this error.
        with suppress(pa.ArrowException, OSError), pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as table:
            found = table.schema.metadata or {}
            if any(found.get(k.encode()) != v.encode() for k, v in facts.items()):
                return "is older than a shard"  # without a look at its seal, which takes a read of gigabytes
        with path.open("rb") as stream:
            problem = check_seal(stream)[1]
    except FileNotFoundError:
        return "does not exist yet"
    except OSError as error:
        return f"can't be read ({error})"
    return f"is damaged ({problem})" if problem else "" if found else "can't be read"


def _write(path: Path, facts: dict[str, str], shards: Iterator[pa.Table]) -> None:
    """Write the rows of the shards into a file, in little memory."""
    with atomic_write(path) as partial:
        schema = _SCHEMA.with_metadata(facts | {"seal": UNSEALED})
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _batches(shards):
                writer.write_batch(batch)
        seal(partial)


def _batches(shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Arrange the rows of shards in batches of `_GROUP` rows, the last one of fewer."""
    waiting, number = [_SCHEMA.empty_table()], 0
    for table in shards:
        waiting.append(table)
        number += len(table)
        while number >= _GROUP:
            rows = pa.concat_tables(waiting)
            yield rows.slice(0, _GROUP).combine_chunks().to_batches()[0]
            waiting, number = [rows.slice(_GROUP)], number - _GROUP
    if number:
        yield pa.concat_tables(waiting).combine_chunks().to_batches()[0]


def _mapped(path: Path) -> Rows:
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    file = pa.ipc.open_file(pa.py_buffer(mapped))
    return Rows([file.get_batch(number) for number in range(file.num_record_batches)], path, mapped)
