"""Shards that were damaged or forged are found by `pad verify` and named by every command that reads them."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards import reader
from pad_pipeline.storage import folder_at
from tests.runs.conftest import Pad


def test_verify_names_what_is_wrong(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A flipped byte, a cut tar, a missing index, a swapped shard, a stray file: each found, each named."""
    good = tmp_path / "good"
    options = ["--images", world.images, *common[:4], "--shard-size", 5, "--out", good]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    assert pad("verify", good).code == 0

    def damaged(change: Callable[[Path], object]) -> str:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        result = pad("verify", folder)
        assert result.code == 1, result.out
        return result.out

    tar = (good / "pad-000001.tar").read_bytes()
    row = pq.read_table(good / "pad-000001.parquet").to_pylist()[2]

    def flip(at: int) -> Callable[[Path], object]:
        return lambda folder: (folder / "pad-000001.tar").write_bytes(tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :])

    out = damaged(flip(row["json_at"] + 30))
    assert "pad-000001: its tar has changed since it was written" in out
    assert f"{row['key']}: sha256 differs" in out
    assert "pad-000000" not in out
    assert "sha256 differs" in damaged(flip(len(tar) - 1))  # the padding at the very end
    out = damaged(lambda folder: (folder / "pad-000001.tar").write_bytes(tar[:5000]))
    assert "5000 bytes instead of" in out
    assert "in the index and not in the tar" in out
    assert "its index is missing" in damaged(lambda folder: (folder / "pad-000000.parquet").unlink())
    assert "its tar is missing" in damaged(lambda folder: (folder / "pad-000000.tar").unlink())
    assert "it belongs to no planned shard" in damaged(lambda folder: (folder / "pad-000007.tar").write_bytes(tar))
    assert "planned images" in damaged(
        lambda folder: [
            shutil.copy(good / f"pad-000000.{end}", folder / f"pad-000001.{end}") for end in ("tar", "parquet")
        ]
    )


def test_verify_refuses_links_and_pickles(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A tar from elsewhere: a link that leads out, an array of objects. Neither is followed or loaded."""
    out = tmp_path / "out"
    options = ["--images", world.images, *common[:4], "--out", out]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    (tar_path,) = out.glob("*.tar")
    with tarfile.open(tar_path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with tarfile.open(tar_path, "w") as tar:
        for number, (info, content) in enumerate(members):
            if number == 0:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
                tar.addfile(info)
                continue
            content = evil.getvalue() if number == 2 else content
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shown = pad("verify", out)
    assert shown.code == 1
    assert "not a regular file" in shown.out
    assert pad("stats", out).code == 2  # one line, no traceback


def test_damaged_shards_are_named_by_every_reader(
    pad: Pad, world: World, models_toml: Path, common: list[object], tmp_path: Path
) -> None:
    """stats and train meet what verify would find: one line that says which file, and points to verify."""
    good = tmp_path / "good"
    options = ["--images", world.images, *common[:4], "--out", good]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    models = models_toml.parent
    train = ["--vision", models / "clip", "--llm", models / "llm", "--batch-size", 10, "--steps", 1]

    def damages() -> dict[str, Callable[[Path], object]]:
        return {
            "tar is empty": lambda folder: (folder / "pad-000000.tar").write_bytes(b""),
            "tar is missing": lambda folder: (folder / "pad-000000.tar").unlink(),
            "index is garbage": lambda folder: (folder / "pad-000000.parquet").write_bytes(b"garbage"),
            "run.json is garbage": lambda folder: (folder / "run.json").write_text("{"),
            "run.json is another's": lambda folder: (folder / "run.json").write_text('{"schema_version": 99}'),
            "run.json is deep": lambda folder: (folder / "run.json").write_text("[" * 100000),
        }

    for number, (name, damage) in enumerate(damages().items()):
        folder = tmp_path / f"bad-{number}"
        shutil.copytree(good, folder)
        damage(folder)
        for command in (["stats", folder], ["train", "--shards", folder, *train, "--out", tmp_path / f"run-{number}"]):
            done = pad(*command)
            assert done.code == 2, (name, command[0])
            assert done.err.count("\n") == 1, (name, done.err)
            assert str(folder) in done.err, name


def test_the_end_of_an_index_is_enough_where_it_holds_the_metadata(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an index with long metadata, or one whose listed size is old, that counts as damaged."""
    assert pad(*imported, "--out", tmp_path / "out").code == 0
    folder = folder_at(tmp_path / "out")
    facts = reader.index_facts(folder, "pad-000000")
    size = folder.size("pad-000000.parquet")
    for known in (size, size - 10, size + 10):
        assert reader.index_facts(folder, "pad-000000", known) == facts
    monkeypatch.setattr(reader, "_TAIL", 100)
    assert reader.index_facts(folder, "pad-000000", size) == facts
