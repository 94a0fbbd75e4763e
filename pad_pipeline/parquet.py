"""Open Parquet files in a way that ends well."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq


def open_parquet(source: Any, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a Parquet file to read; pass `use_threads=False` to its methods.

    With Arrow's default, `pre_buffer`, a thread of Arrow's reads the bytes. It may drop the last reference to a Python
    file while the interpreter ends, and the process then aborts. Every row group would also stay in memory.

    Args:
        source: a path, or a Python file to read at any position.
        buffer_size: bytes to read at once; with 0, the whole column of a row group.
    """
    return pq.ParquetFile(source, buffer_size=buffer_size, pre_buffer=False)
