"""An image that kills its process is set aside alone, and a stage that always fails stops the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_pipeline.shards.reader import open_shards
from tests.conftest import data
from tests.runs.conftest import Pad
from tests.runs.processes import finished, process


@pytest.mark.parametrize(
    ("engine", "what", "signs"),
    [
        pytest.param(
            ["--engine", "local"], "segfault:scene-00007", "signal SIGSEGV", id="local", marks=pytest.mark.long
        ),
        pytest.param(
            ["--engine", "ray", "--workers", 2], "memory:scene-00007", "A worker died over pad-000003, in deadly",
            id="ray", marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_an_image_that_kills_its_process_is_set_aside_alone(
    engine: list[object], what: str, signs: str, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """A decoder that segfaults, or asks for more memory than there is, ended the run at the same image each time. Its
    neighbors must come through; to drop what shared the worker is not enough."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    imported = [*imported, "--shard-size", 2]
    code, said = finished(process([*imported, *engine, "--out", out], what))
    assert code == 0, said
    assert signs in said
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    assert {source for source, row in rows.items() if row["status"] == "failed"} == {"scene-00007.png"}
    assert rows["scene-00007.png"]["stage"] == "deadly"
    assert "killed the process" in rows["scene-00007.png"]["reason"]
    assert not list(out.glob(".*"))
    # Without what kills, the image can be had back, and nothing tells the shards from those that had no trouble.
    assert pad(*imported, "--out", out, "--retry-failed").code == 0
    assert pad(*imported, "--out", whole).code == 0
    assert data(out) | {"run.json": ""} == data(whole) | {"run.json": ""}


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_stage_that_always_fails_stops_the_run(engine: str, imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """A GPU driver that broke in the night set 500,000 images aside. Now the run stops, and nothing is committed."""
    out = tmp_path / "out"
    code, said = finished(process([*imported, "--breaker", 5, "--engine", engine, "--out", out], "broken"))
    assert code == 2, said
    assert "stage = broken: 5 images in a row failed" in said
    assert "the model gives no finite numbers" in said
    assert not list(out.glob("pad-*"))
    assert pad(*imported, "--out", out).code == 0


def test_a_stage_that_fails_for_some_goes_on(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """The breaker counts images in a row: one of ten is no reason to stop; --max-failed judges at the end."""
    out = tmp_path / "out"
    command = [*imported, "--breaker", 2, "--out", out]
    code, said = finished(process([*command, "--max-failed", "0"], "broken:scene-00003"))
    assert code == 1, said
    assert "1 of 10 images failed; --max-failed 0 allows 0" in said
    failed = [row for _, row in open_shards(out).rows() if row["status"] == "failed"]
    assert [(row["id"], row["stage"], row["reason"]) for row in failed] == [
        ("scene-00003", "broken", "RuntimeError: the model gives no finite numbers")
    ]
    assert pad(*command, "--max-failed", "10%").code == 0
    assert pad(*command, "--max-failed", "half").code == 2
