"""A LLaVA JSON is read record by record as it streams, and gives what `json.loads` gives."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pad_pipeline.sources import llava
from pad_pipeline.sources.base import clean
from pad_pipeline.sources.open import open_source
from tests.sources.small_sources import brief

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
WINDOWS = st.integers(1, 12) | st.just(400)
SPACES = st.text(" \t\r\n", max_size=3)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(-(1 << 70), 1 << 70) | st.text(max_size=3) | st.none(),
            "image": st.text("]}, {", max_size=6),
        },
        optional={"conversations": st.lists(st.dictionaries(st.text(max_size=2), st.text("]}{[,", max_size=4)))},
    ),
    max_size=30,
)


def streamed(text: str, window: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "_WINDOW", window)
        return list(llava.stream_list(io.StringIO(text)))


def test_a_llava_json_gives_its_records(tmp_path: Path) -> None:
    """Would catch a record lost or miscounted, and a broken one that stops all others."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    good, text_only = {"id": "1", "image": "a.jpg", "conversations": turns}, {"id": "2", "conversations": turns}
    bad = [
        {"id": "3", "image": {}},
        {"id": "4", "image": "../a.jpg"},
        {"id": "5", "image": "a.jpg"} | {"conversations": 1},
    ]
    (tmp_path / "llava.json").write_text(json.dumps([good, text_only, *bad, "x"]))
    source = open_source(tmp_path / "llava.json")
    first, *others = source
    assert (*brief(first), list(first.conversations)) == ("1", "a.jpg", "A dog.", turns)
    assert [p.id for p in others] == ["3", "4", "5", "record-5"]
    assert all(p.problem for p in others)
    assert source.counts == {"records without an image": 1}


@settings(deadline=None, max_examples=200)
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), SPACES, SPACES, WINDOWS)
@example([1e22, -1.5e-7], None, True, "", "", 3)
@example([{}], None, True, "\n", "\n", 1)
def test_a_streamed_list_is_what_json_reads(
    entries: list[Any], indent: int | None, ascii_only: bool, before: str, behind: str, window: int
) -> None:
    """Would catch an entry that is cut where one window ends and the next begins: a number, an escape, a comma."""
    text = before + json.dumps(entries, indent=indent, ensure_ascii=ascii_only) + behind
    text = text.encode(errors="replace").decode()  # as a file holds it
    assert streamed(text, window) == clean(json.loads(text))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(JSON, max_size=4),
    st.integers(0, 40),
    st.integers(0, 6),
    st.text('[]{},:"\\ 01.eE-tx\0', max_size=2),
    WINDOWS,
)
@example([1, 2], 2, 1, "", 1)
@example([1, [2], *range(9)], 2, 2, "", 400)
@example([1, 2], 1, 0, ",", 4)
@example([1], 2, 0, ",", 2)
def test_a_broken_list_is_a_value_error(entries: list[Any], at: int, cut: int, put: str, window: int) -> None:
    """Would catch text that json.loads refuses and streaming takes, or another error than ValueError."""
    text = json.dumps(entries)
    text = text[:at] + put + text[at + cut :]
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, list):
        assert streamed(text, window) == clean(expected)
    else:
        with pytest.raises(ValueError):
            streamed(text, window)


@settings(deadline=None, max_examples=200)
@given(RECORDS, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 400))
@example([{"id": number, "image": "]},{"} for number in (1, 2, 1 << 70, 3)], None, True, 400)
@example([{"id": 1}, {"id": 2, "image": "\ud800"}, {"id": 3}], None, True, 400)
def test_streamed_records_are_what_json_reads(
    records: list[Any], indent: int | None, ascii_only: bool, window: int
) -> None:
    """Would catch a record that is cut at what only looks like its end, one that is lost or comes twice, an id of more
    than 64 bits that is rounded, half a character that is refused."""
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode(errors="replace").decode()
    assert streamed(text, window) == clean(json.loads(text))
