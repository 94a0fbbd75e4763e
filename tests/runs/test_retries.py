"""A retry computes only what failed, keeps all else, and loses nothing where it dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_pipeline.shards.reader import open_shards
from tests.conftest import data
from tests.runs.conftest import Pad
from tests.runs.processes import finished, process


def test_only_what_failed_is_tried_again(folder: Path, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """img2dataset's users have asked for it for years. The mended image joins its shard; all other images keep what was
    found in them, to the byte, without being computed again."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["build", "--images", folder, *common, "--engine", "local", "--shard-size", 4]
    good = (folder / "scene-00005.png").read_bytes()
    assert pad(*command, "--out", whole).code == 0
    (folder / "scene-00005.png").write_bytes(good[:700])
    assert pad(*command, "--out", out).code == 0
    kept = {row["key"]: row["sha256"] for _, row in open_shards(out).rows() if row["status"] == "ok"}
    nothing = pad(*command, "--out", out, "--retry-failed")
    assert nothing.code == 0 and "9 ok, 0 empty, 1 failed" in nothing.out
    (folder / "scene-00005.png").write_bytes(good)
    assert "fingerprints.inputs" in pad(*command, "--out", out).err, "without being asked, a changed input is refused"
    before = (out / "pad-000000.tar").stat().st_mtime_ns, (out / "pad-000001.tar").stat().st_mtime_ns
    again = pad(*command, "--out", out, "--retry-failed")
    assert again.code == 0, again.err
    assert "10 ok, 0 empty, 0 failed" in again.out
    after = (out / "pad-000000.tar").stat().st_mtime_ns, (out / "pad-000001.tar").stat().st_mtime_ns
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    shards, wholes = open_shards(out), open_shards(whole)
    for (name, row), (_, other) in zip(shards.rows(), wholes.rows(), strict=True):
        assert row["sha256"] == kept.get(row["key"], row["sha256"])
        assert (row["key"], row["status"], row["regions"]) == (other["key"], "ok", other["regions"])
        assert shards.sample(name, row).image == (folder / row["source"]).read_bytes()
    assert pad("verify", out, "--deep").code == 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stages"]["tag"]["images"] == 1, "the others were not computed again"
    (folder / "scene-00006.png").write_bytes(good)
    refused = pad(*command, "--out", out, "--retry-failed")
    assert refused.code == 2 and "scene-00006" in refused.err, "an image that was sound may not change"
    assert pad(*command, "--out", tmp_path / "new", "--retry-failed").code == 2


def test_a_retry_that_dies_loses_nothing(folder: Path, imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Killed between tar and index of a shard that is written again: the next retry left that shard out for good."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 2, "--out", out]
    (folder / "scene-00004.png").write_bytes(b"garbage")
    assert pad(*command).code == 0
    expected = data(out)
    (out / "pad-000002.parquet").unlink()  # what such a death leaves
    assert pad(*command, "--retry-failed").code == 0
    assert data(out) == expected


@pytest.mark.long
def test_a_retry_ends_where_one_image_fails_again_and_another_kills(
    folder: Path, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """Each new process tried the first shard again, and forgot over it how often the second had killed."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 2, "--out", out]
    good = (folder / "scene-00005.png").read_bytes()
    for name in ("scene-00000.png", "scene-00005.png"):
        (folder / name).write_bytes(b"garbage")
    assert pad(*command).code == 0
    (folder / "scene-00005.png").write_bytes(good)
    code, said = finished(process([*command, "--retry-failed"], "segfault:scene-00005"))
    assert code == 0, said
    failed = {row["id"]: row["stage"] for _, row in open_shards(out).rows() if row["status"] == "failed"}
    assert failed == {"scene-00000": "decode", "scene-00005": "deadly"}
    assert not list(out.glob(".*"))
