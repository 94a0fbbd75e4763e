"""The page docs/format.md says what the code writes: its columns, fields and types, and where patches lie."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.geometry import View
from pad_pipeline.plan import GROUP, PLAN_NAME, PLAN_SCHEMA
from pad_pipeline.records import (
    INDEX_SCHEMA,
    MEMBERS,
    SCHEMA_VERSION,
    Alternate,
    ImageRecord,
    Planned,
    Region,
    Shard,
    Status,
    Tag,
)
from pad_pipeline.shards.reader import index_facts
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.writer import TOTALS, write_shard
from pad_pipeline.storage import Folder
from tests.conftest import ROOT
from tests.shards.builders import FIRST, GRID, WIDTH, planned

PAGE = (ROOT / "docs/format.md").read_text()


def documented(heading: str, table: int = 0) -> dict[str, str]:
    """What a table below a heading of the page names in its first column, with the type that stands beside it."""
    section = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables[table].splitlines()[2:]]
    return {name: kind for names, kind, *_ in cells for name in re.findall(r"`([^`]+)`", names)}


def paths(value: Any, before: str = "") -> dict[str, str]:
    """The fields of a JSON value, as the page names them and their types."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
    found = {before: kinds[type(value)]} if before else {}
    if isinstance(value, dict):
        for name, entry in value.items():
            found |= paths(entry, f"{before}.{name}" if before else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found |= {path: kind for path, kind in paths(value[0], f"{before}[]").items() if path != f"{before}[]"}
    return found


def test_the_page_of_the_format_names_what_is_written(tmp_path: Path) -> None:
    """A column, a field or an entry that is new, gone, or of another type, and a page that does not know: nobody could
    read the shards by it."""
    assert documented("The index") == {field.name: str(field.type) for field in INDEX_SCHEMA}
    assert documented("The plan") == {field.name: str(field.type) for field in PLAN_SCHEMA}
    assert set(documented("run.json")) == {*Run.model_fields, "seal"}
    assert set(documented("run.json", 1)) == set(View.model_fields)
    assert documented("The tar") == {member: f"`key.{ending}`" for member, ending in MEMBERS.items()}

    rle = {"size": [1, 1], "counts": "01"}
    region = Region("a", (0, 0, 1, 1), alternates=[Alternate("b", 0.5, 0.5)], rle=rle)
    record = ImageRecord(
        "id", "source", "caption", [{"from": "human", "value": "?"}], key="key", tags=[Tag("a", 0.5, ["tagger"])]
    )
    record.regions, record.width, record.height = [region], 1, 1
    described = {name: kind.partition(" ")[0] for name, kind in documented("key.json").items()}
    assert described == paths(json.loads(record.to_json()))

    record.coverage, record.embeds = np.zeros((1, GRID, GRID), np.uint8), np.zeros((2, WIDTH), np.float16)
    write_shard(Shard(0, [record]), Folder(tmp_path), "0" * 16)
    facts = index_facts(Folder(tmp_path), FIRST)
    assert set(documented("The index", 1)) == {name.decode() for name in facts} - {"ARROW:schema"}
    assert all(f"`{name}`" in PAGE for name in (*TOTALS, *get_args(Status)))
    planned(tmp_path / PLAN_NAME, [Planned("1", "1.png")], 2)
    noted = set(pq.read_schema(tmp_path / PLAN_NAME).metadata)
    assert noted == {b"shard_size", b"seal"} and "The metadata holds `shard_size` and `seal`" in PAGE
    assert f"row groups of {GROUP:,} rows" in PAGE
    assert f"\nVersion {SCHEMA_VERSION}." in PAGE


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(336, 14), (112, 8), (384, 16)]))
def test_the_page_of_the_format_says_where_patches_lie(width: int, height: int, square: tuple[int, int]) -> None:
    """Its three formulas, computed as they stand there, against the code's axes."""
    size, patch = square
    formulas = re.findall(r"^(stretch|pad|crop) {2,}(.*?)(?: {4,}.*)?$", PAGE, re.MULTILINE)
    assert len(formulas) == 3 and "T = S where N <= M, else floor(S * N / M)" in PAGE
    for fit, formula in formulas:
        axes = View(size=size, patch=patch, fit=fit).axes(width, height)
        for axis, (edge, other) in zip(axes, ((width, height), (height, width)), strict=True):
            names = {"floor": math.floor, "N": edge, "M": other, "S": size, "P": patch, "Q": max(edge, other)}
            names["T"] = size if edge <= other else math.floor(size * edge / other)
            for j in (0, 1, size // patch):
                found = eval(formula, names | {"j": j})
                assert found == pytest.approx((axis.origin + j * axis.cell) / axis.pixel)
