"""What the tests of sources share: images, lists and tars of a few bytes, and what a user is told about them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.open import open_source

LISTS = ["parquet", "csv", "tsv", "jsonl", "ndjson"]
"""The formats of lists, by the ending of their files."""
MOST = 1 << 20
"""Bytes of one image that a test allows to be read."""


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade).save(stream, "PNG")
    return stream.getvalue()


def write_list(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a list of the kind that the path's ending says."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def brief(planned: Planned) -> tuple[str, str, str]:
    return planned.id, planned.source, planned.caption


def error_of(*arguments: Any, **options: Any) -> str:
    """The one line that a user gets, from opening a source or from listing it."""
    with pytest.raises(UserError) as caught:
        list(open_source(*arguments, **options))
    return str(caught.value)
