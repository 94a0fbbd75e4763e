"""A disk that is full, can only be read or is gone stops a run in one line, and the same command goes on later."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from pad_pipeline.miniature.files import World
from tests.conftest import data, wait_for
from tests.runs.conftest import Pad
from tests.runs.processes import PAD, finished, process


@contextmanager
def small_disk(folder: Path, options: str = "size=5m") -> Iterator[Path]:
    """A disk of 5 MB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_keeps_what_was_committed(
    imported: list[object], world: World, pad: Pad, tmp_path: Path
) -> None:
    """Full in mid-run: one line, what is committed stays sound; with room, the same command ends in the same bytes."""
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    for path in images.glob("*.png"):  # each 1 MB, so that five fit
        Image.open(path).resize((700, 500), Image.Resampling.NEAREST).save(path, compress_level=0)
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", images, *imported[6:]]
    coco = json.loads(world.instances.read_text())
    for entry in coco["images"]:
        del entry["width"], entry["height"]
    coco["annotations"] = []
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with small_disk(tmp_path / "disk") as disk:
        stopped = pad(*command, "--shard-size", 1, "--out", disk / "out")
        assert stopped.code == 2
        assert "can't be written (No space left on device)" in stopped.err
        assert "Traceback" not in stopped.err
        committed = sorted((disk / "out").glob("*.parquet"))
        assert 2 <= len(committed) < 10
        assert not list((disk / "out").glob(".*"))
        shutil.copytree(disk / "out", tmp_path / "out")
        whole = tmp_path / "whole"
        assert pad(*command, "--shard-size", 1, "--out", whole).code == 0
        assert pad(*command, "--shard-size", 1, "--out", tmp_path / "out").code == 0
        assert data(tmp_path / "out") == data(whole)


@pytest.mark.slow
def test_a_full_disk_stops_the_build_and_the_rest_comes_later(
    world: World, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """A limit on file sizes fails writes as a full disk does: one line, no half shard under a final name, and the same
    command goes on when there is room."""
    out = tmp_path / "out"
    command = ["build", "--images", world.images, *common, "--engine", "local", "--shard-size", 5, "--out", out]
    line = " ".join(map(str, [PAD, *command]))
    full = subprocess.run(["bash", "-c", f"ulimit -f 100; {line}"], capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "can't be written (File too large)" in full.stderr
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "plan.parquet", "run.json"]
    done = pad(*command)
    assert done.code == 0, done.err
    assert "10 images" in done.out


def test_a_disk_that_can_only_be_read_is_told_in_one_line(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """One line, for a new run and for one that was begun when it could be written."""
    with small_disk(tmp_path / "disk") as disk:
        assert pad(*imported, "--shard-size", 4, "--out", disk / "begun").code == 0
        (disk / "begun" / "pad-000001.parquet").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for name in ("new", "begun"):
            refused = pad(*imported, "--shard-size", 4, "--out", disk / name)
            assert refused.code == 2
            assert "can't be written (Read-only file system" in refused.err
            assert refused.err.count("\n") == 1


@pytest.mark.long
def test_a_folder_that_vanishes_is_not_half_made_again(
    world: World, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """Somebody deletes the output in mid-run: one line, no folder half made again."""
    out = tmp_path / "out"
    command = ["build", "--images", world.images, *common, "--engine", "local", "--shard-size", 1, "--out", out]
    started = process(command)
    wait_for(lambda: list(out.glob("pad-*.parquet")), started)
    out.rename(tmp_path / "elsewhere")
    code, said = finished(started)
    assert code == 2, said
    assert "can't be written" in said
    assert "Traceback" not in said
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    assert finished(process(command))[0] == 0
    assert pad("verify", out).code == 0
