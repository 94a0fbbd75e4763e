"""A run keeps apart what lies in its output folder: finished shards, damage, leftovers, rivals and files of others."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from pad_pipeline.miniature.files import World
from tests.conftest import data
from tests.runs.conftest import Pad


def test_two_runs_into_one_folder_are_kept_apart(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """The second refuses and says who is there; a lock file that a dead process left holds nobody off."""
    out = tmp_path / "out"
    assert pad(*imported, "--out", out).code == 0
    expected = data(out)
    with (out / ".lock").open("w") as held:
        held.write('{"host": "here", "process": 4711}')
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = pad(*imported, "--out", out)
        assert refused.code == 2
        assert "another run is writing into it (process 4711 on here)" in refused.err
    assert pad(*imported, "--out", out).code == 0
    assert data(out) == expected


def test_somebody_elses_files_are_not_touched(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A folder with a plan.parquet or run.json of another tool is not a run of ours."""
    for name, content in (("plan.parquet", b"mine"), ("run.json", b'{"mine": 1}'), (".git", b"x")):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_bytes(content)
        done = pad("build", "--images", world.images, *common, "--engine", "local", "--out", folder)
        assert done.code == 2
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: content}


def test_leftovers_of_the_dead_are_removed_and_nothing_else(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Unfinished files, a tar that was never committed, an index without its tar: gone or made anew. What only looks
    like them stays."""
    out = tmp_path / "out"
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    expected = data(out)
    for name in (".pad-000001.tar.0123456789ab.partial", ".plan.parquet.0123456789ab.partial", "pad-000009.tar"):
        (out / name).write_bytes(b"left")
    mine = [".notes", ".pad-000001.tar.mine.partial", "pad-notes.txt", ".pad-000001.tar.0123456789ab.partial~"]
    for name in mine:
        (out / name).write_bytes(b"mine")
    (out / "pad-000000.tar").unlink()
    (out / "pad-000002.parquet").unlink()
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    for name in mine:
        assert (out / name).read_bytes() == b"mine"
        (out / name).unlink()
    assert data(out) == expected


def test_a_damaged_shard_is_made_anew(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """A tar that was cut short, an index that is garbage or another run's: a rerun used to count them as finished."""
    out, other = tmp_path / "out", tmp_path / "other"
    assert pad(*imported, "--shard-size", 3, "--out", out).code == 0
    assert pad(*imported, "--shard-size", 3, "--fit", "pad", "--out", other).code == 0
    expected = data(out)
    os.truncate(out / "pad-000000.tar", 5000)
    (out / "pad-000001.parquet").write_bytes(b"garbage")
    for ending in ("tar", "parquet"):
        shutil.copy(other / f"pad-000002.{ending}", out)
    again = pad(*imported, "--shard-size", 3, "--out", out)
    assert again.code == 0
    assert "damaged shards that are made again: 3 (pad-000000, pad-000001, pad-000002)" in again.err
    assert data(out) == expected


def test_a_wrong_model_does_not_lock_the_folder(
    pad: Pad, world: World, models_toml: Path, common: list[object], tmp_path: Path
) -> None:
    """A first attempt that failed before its first shard used to refuse the mended second one."""
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    swapped = models_toml.read_text().replace('"tagger.safetensors"', '"segmenter.safetensors"')
    (tmp_path / "models.toml").write_text(swapped)
    command = [
        "build",
        "--images",
        world.images,
        "--models",
        tmp_path / "models.toml",
        *common[2:],
        "--engine",
        "local",
    ]
    assert pad(*command, "--out", tmp_path / "out").code == 2
    (tmp_path / "models.toml").write_text(models_toml.read_text())
    done = pad(*command, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    # A lost plan is put back, from the same inputs, by the same command.
    (tmp_path / "out" / "plan.parquet").unlink()
    assert pad(*command, "--out", tmp_path / "out").code == 0
    assert pad("verify", tmp_path / "out").code == 0
