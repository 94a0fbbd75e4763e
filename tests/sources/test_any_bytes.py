"""Whatever bytes a file has, it gives rows or an error of one line."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.open import open_source
from tests.sources.small_sources import write_list, write_tar


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    turns = [{"from": "gpt", "value": "A dog."}]
    rows = [{"image": f"{n}.jpg", "id": n, "caption": f"number {n}"} for n in range(20)]
    for kind in ("parquet", "csv", "jsonl"):
        write_list(folder / f"a.{kind}", rows)
    (folder / "a.json").write_text(json.dumps([row | {"conversations": turns} for row in rows]))
    write_tar(folder / "a.tar", [(f"{n}.{end}", b'{"id": 1}') for n in range(3) for end in ("jpg", "json", "x" * 200)])
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["jsonl", "csv", "parquet", "tar", "json"]),
    start=st.floats(0, 1),
    cut=st.integers(0, 600),
    junk=st.binary(max_size=600),
    keep=st.booleans(),
)
def test_any_bytes_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    originals: dict[str, bytes],
    kind: str,
    start: float,
    cut: int,
    junk: bytes,
    keep: bool,
) -> None:
    """Would catch any traceback that a damaged or hostile file can make, and text that the plan can't hold."""
    good = originals[kind]
    at = int(start * len(good))
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    path.write_bytes(good[:at] + junk + good[at + cut :] if keep else junk)
    try:
        for planned in open_source(path):
            assert isinstance(planned, Planned)
            assert planned.id
            pa.array([planned.id, planned.source, planned.place.file, planned.caption, planned.problem], pa.string())
            json.dumps(planned.conversations).encode()
    except UserError as error:
        assert "\n" not in str(error)
