"""JSON members of any kind, in tars whose hashes are right, are named or do no harm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder
from tests.shards.builders import FIRST
from tests.shards.children import in_child
from tests.shards.conftest import Runs
from tests.shards.damage import index_rows
from tests.shards.hostile import DEEP, look, run_of_one

ANYTHING: list[Any] = [float("nan"), float("inf"), 10**400, None, "5", []]


def hostile_json(good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """JSON members, by what is wrong with them."""
    for text in ("[" * DEEP, '{"a":' * DEEP, "NaN", "null", "[]", '"regions"', "1e999", "", "{", "\ufeff{}", "0" * 9):
        yield text[:9], text.encode()
    yield "no UTF-8", b'{"caption":"\xff"}'
    yield "UTF-16", json.dumps(good).encode("utf-16")
    for name in good:
        yield f"no {name}", json.dumps({key: value for key, value in good.items() if key != name}).encode()
        for value in ANYTHING:
            yield f"{name} = {str(value)[:9]}", json.dumps(good | {name: value}).encode()
    shown = good["regions"][0]
    for name in shown:
        without = {key: value for key, value in shown.items() if key != name}
        yield f"region without {name}", json.dumps(good | {"regions": [without, *good["regions"][1:]]}).encode()
        for value in [*ANYTHING, [None], [float("nan")] * 4, [1e999] * 4, ["a"] * 4, {"size": None}]:
            regions = [shown | {name: value}, *good["regions"][1:]]
            yield f"region's {name} = {str(value)[:20]}", json.dumps(good | {"regions": regions}).encode()
    for name in ("size", "counts"):
        for value in [
            *ANYTHING,
            [1, 2],
            [None, None],
            [10**30] * 2,
            [float(edge) for edge in shown["rle"]["size"]],
            "日",
        ]:
            regions = [shown | {"rle": shown["rle"] | {name: value}}, *good["regions"][1:]]
            yield f"rle's {name} = {str(value)[:20]}", json.dumps(good | {"regions": regions}).encode()


def read_hostile_json(good: str, scratch: str) -> None:
    """In a child: shards whose hashes are right and whose JSON is anything."""
    folder, run, record = run_of_one(good, scratch)
    for what, member in hostile_json(json.loads(record.to_json())):
        record.to_json = lambda member=member: member  # type: ignore[method-assign]
        write_shard(Shard(0, [record]), Folder(folder), run.identity)
        look(folder, what, damaged=b"NaN" in member)


def test_json_members_of_any_kind_are_named_or_do_no_harm(runs: Runs, tmp_path: Path) -> None:
    """Nested 100,000 deep, NaN, huge numbers, wrong types, missing keys, no UTF-8: in a tar whose hashes are right.
    Catches a reader that trusts a key to be there (`format`), and recursion that ends the process."""
    assert in_child(read_hostile_json, runs.good, tmp_path / "run") == []


def test_what_is_restored_can_be_written(runs: Runs) -> None:
    """`restore` takes over what an earlier run wrote, from any tar: it refuses in the three ways that it names, or the
    record can be written as JSON again. Catches NaN and infinity that travel into a new run, which `pad verify` then
    calls damaged."""
    shards = ShardFolder(runs.good)
    good = shards.sample(FIRST, index_rows(runs.good)[0]).meta
    for what, member in hostile_json(good):
        record = ImageRecord("id", "source", key="key")
        try:
            meta = json.loads(member)
        except (ValueError, RecursionError):
            continue
        try:
            record.restore(meta)
        except (KeyError, TypeError, ValueError):
            continue
        assert not re.search(rb"NaN|Infinity", record.to_json()), what
