"""No byte of a sealed file changes unseen, and text that looks like a seal is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.plan import PLAN_NAME, Plan
from pad_pipeline.records import Planned, Shard
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import UNSEALED, check_seal, seal, seal_problem
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder
from tests.shards.builders import FIRST, SECOND, a_run, planned
from tests.shards.conftest import Runs


def sealed_files(runs: Runs, home: Path) -> dict[str, bytes]:
    images = [Planned(f"{n}", f"{n}.png", caption="a house") for n in range(3)]
    planned(home / PLAN_NAME, images, 2)
    return {path.name: path.read_bytes() for path in (home / PLAN_NAME, runs.good / f"{SECOND}.parquet",
                                                      runs.good / RUN_NAME)}  # fmt: skip


def test_no_byte_of_a_sealed_file_can_change_unseen(runs: Runs, tmp_path: Path) -> None:
    """Each byte of an index, of a plan and of run.json, flipped in three ways, dropped or doubled; each length that a
    file can be cut to. Catches a seal that leaves out a part of the file, such as the seal's own surroundings."""
    for name, content in sealed_files(runs, tmp_path).items():
        assert seal_problem(content) == ""
        for at, byte in enumerate(content):
            flipped = bytearray(content)
            for pattern in (0x01, 0x80, 0xFF):
                flipped[at] = byte ^ pattern
                assert seal_problem(bytes(flipped)), f"{name}: byte {at} ^ {pattern:#x}"
            assert seal_problem(content[:at]), f"{name}: cut to {at}"
            assert seal_problem(content[:at] + content[at + 1 :]), f"{name}: without byte {at}"
            assert seal_problem(content[:at] + content[at : at + 1] + content[at:]), f"{name}: byte {at} twice"
        for more in (b"\0", b"\n", content, UNSEALED.encode()):
            assert seal_problem(content + more), f"{name}: {len(more)} bytes more"
            assert seal_problem(more + content), f"{name}: {len(more)} bytes in front"


@pytest.mark.parametrize("behind", [0, 10, (1 << 20) - 70, (1 << 20) - 40, 1 << 20, (3 << 20) + 5])
def test_a_seal_is_found_wherever_the_windows_end(tmp_path: Path, behind: int) -> None:
    """Files larger than what is read at a time. Catches a seal across the edge of two windows that is not found, and
    bytes that are hashed twice or never."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000 + UNSEALED.encode() + b"x" * behind)
    seal(path)
    content = path.read_bytes()
    assert seal_problem(content) == ""
    for at in (0, (1 << 20) - 1, 1 << 20, len(content) - behind - 1, len(content) - 1):
        assert seal_problem(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_text_that_looks_like_a_seal_is_text(tmp_path: Path) -> None:
    """A caption, an id, a reason or a setting that holds the words of a seal. Catches a writer that puts the seal
    there, and a check that looks for it there: the file would count as damaged."""
    names = [UNSEALED, UNSEALED[:14], UNSEALED[:14] + "a" * 64, UNSEALED * 2]
    facts = planned(tmp_path / PLAN_NAME, [Planned(name, name, caption=name, problem=name) for name in names], 9)
    with (tmp_path / PLAN_NAME).open("rb") as stream:
        assert check_seal(stream) == (facts.seal, "")
    plan = Plan(Folder(tmp_path))
    assert [row["caption"] for row in plan.rows(0)] == names

    write_shard(Shard(0, plan.shard(0)), Folder(tmp_path), "identity")
    assert seal_problem((tmp_path / f"{FIRST}.parquet").read_bytes()) == ""
    for where in ("counts", "settings", "fingerprints", "kind"):
        for name in names:
            value: Any = name if where == "kind" else {name: 1} if where == "counts" else {"name": name}
            run = a_run(**{where: value})
            run.write(Folder(tmp_path))
            assert seal_problem((tmp_path / RUN_NAME).read_bytes()) == "", where
            assert Run.read(Folder(tmp_path)) == run, where
