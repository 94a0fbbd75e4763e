"""Read images whose bytes stand in a column of a Parquet file, row group by row group."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from pad_pipeline.images import BadImage
from pad_pipeline.parquet import open_parquet
from pad_pipeline.records import Place
from pad_pipeline.sources.base import open_url
from pad_pipeline.storage import is_url

_CELL = re.compile(r"(.+)#([\w%-]+)(?:\[(\d+)\])?", re.DOTALL)
_ROWS = 16
"""Rows that are decoded at a time."""
_KEPT = 8
"""Groups of `_ROWS` rows that stay in memory, because threads ask for rows in nearly, not exactly, their order."""
_FILES = 4
"""Files of a process that stay open."""


def cell(file: str, column: str, row: int, element: int | None = None) -> Place:
    """Return the place of an image in a Parquet file: `file#column`, or `file#column[element]` in a column of lists;
    the first byte is then the number of the row."""
    # A quoted name has no dot, so that no such place looks like a file in a tar.
    quoted = quote(column, safe="").replace(".", "%2E").replace("~", "%7E")
    return Place(f"{file}#{quoted}" + ("" if element is None else f"[{element}]"), row)


def in_cell(place: Place) -> re.Match[str] | None:
    """Return file, column and element of a place that `cell` made; None for any other place."""
    if place.at < 0 or "#" not in place.file:
        return None
    found = _CELL.fullmatch(place.file)
    file = found[1].lower() if found else ""
    return found if file.endswith(".parquet") or file.partition("?")[0].endswith(".parquet") else None


def read_cell(root: str, place: Place) -> bytes | str:
    """Return the bytes of the image at a place that `cell` made; where they are empty, the path beside them.

    Raises:
        BadImage: the row has neither.
        OSError, pa.ArrowException: the file can't be read.
    """
    found = in_cell(place)
    assert found
    where = found[1] if is_url(found[1]) else f"{root}/{found[1]}"
    with _lock:
        column = _columns.pop((where, found[2]), None) or _Column(where, unquote(found[2]))
        _columns[where, found[2]] = column
        closed = [_columns.popitem(last=False)[1] for _ in range(len(_columns) - _FILES)]
    for one in closed:
        one.close()
    try:
        value = column.value(place.at)
    except BadImage:
        raise
    except Exception:  # the next try opens the file again
        with _lock:
            _columns.pop((where, found[2]), None)
        raise
    if found[3] is not None:
        values, element = value if isinstance(value, list) else [], int(found[3])
        value = values[element] if element < len(values) else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str) or not value:
        raise BadImage(f"row {place.at} of {found[1]} holds no bytes of an image")
    return value


class _Column:
    """One column of one file, read from the first row that is asked for onwards."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = where, name
        self.lock = threading.Lock()
        self.file: Any = None
        self.starts = np.array([0])
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.next = self.end = 0
        self.kept: deque[tuple[int, pa.Array]] = deque(maxlen=_KEPT)

    def value(self, row: int) -> Any:
        """Return the value in a row as a Python object."""
        with self.lock:
            if self.file is None:
                self._open()
            if not 0 <= row < self.starts[-1]:
                raise BadImage(f"{self.where} has no row {row}; it has {self.starts[-1]}")
            while True:
                for start, values in self.kept:
                    if start <= row < start + len(values):
                        return values[row - start].as_py()
                if not self.next <= row < self.end:
                    self._begin(row)
                values = next(self.batches).column(self.name)
                self.kept.append((self.next, values))
                self.next += len(values)

    def _open(self) -> None:
        source: Any = open_url(self.where) if is_url(self.where) else self.where
        self.file = open_parquet(source, buffer_size=1 << 20)
        groups = range(self.file.metadata.num_row_groups)
        self.starts = np.cumsum([0, *(self.file.metadata.row_group(group).num_rows for group in groups)])

    def _begin(self, row: int) -> None:
        """Go to the start of the row group that holds a row."""
        group = int(np.searchsorted(self.starts, row, "right")) - 1
        self.next, self.end = int(self.starts[group]), int(self.starts[group + 1])
        self.batches = self.file.iter_batches(_ROWS, row_groups=[group], columns=[self.name], use_threads=False)

    def close(self) -> None:
        """Close the file, once no thread reads it."""
        with self.lock:
            if self.file is not None:
                self.file.close()
                self.file = None
                self.batches, self.next, self.end = iter(()), 0, 0


_lock = threading.Lock()
_columns: OrderedDict[tuple[str, str], _Column] = OrderedDict()
"""The columns that were read last in this process, by file and name."""
