"""`pad show` draws one image with what a build would find in it, and refuses in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.sharing.conftest import Pad


def test_show_draws_what_a_build_finds(
    pad: Pad, world: World, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tags and regions as in the shards of a build of that image. Catches stages in another order, settings
    that are not passed on."""
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    shutil.copyfile(sorted(world.images.iterdir())[0], image)
    own = tmp_path / "pad.toml"
    text = models_toml.read_text()
    own.write_text(text)
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    done = pad("show", image, "--models", own, "--out", tmp_path / "found.png", "--open")
    assert done.code == 0, done.err
    command = ["build", "--images", image.parent, "--models", own, "--engine", "local", "--out", tmp_path / "out"]
    assert pad(*command).code == 0
    (row,) = (row for _, row in open_shards(tmp_path / "out").rows())
    assert f"{row['tags']} tags, {row['regions']} regions: {tmp_path / 'found.png'}" in done.out
    drawn = Image.open(tmp_path / "found.png")
    assert drawn.width > 1000 and np.asarray(drawn).std() > 10
    assert opened == [str(tmp_path / "found.png")]


def test_show_refuses_in_one_line(pad: Pad, world: World, models_toml: Path, tmp_path: Path) -> None:
    """No image, a broken one, an output that is none or is the image itself; before any model is loaded."""
    image = tmp_path / "a.png"
    shutil.copyfile(sorted(world.images.iterdir())[0], image)
    before = image.read_bytes()
    (tmp_path / "cut.png").write_bytes(before[: len(before) // 2])
    (tmp_path / "text.png").write_text("no image")
    for arguments, told in (
        ([tmp_path / "none.png"], "IMAGE = .*there is no such file"),
        ([tmp_path], "IMAGE = .*this is no ordinary file"),
        ([tmp_path / "cut.png"], "no readable image"),
        ([tmp_path / "text.png"], "no readable image"),
        ([image, "--out", tmp_path / "a.txt"], "--out = .*PNG or JPEG"),
        ([image, "--out", tmp_path / "x/a.png"], "--out = .*no such folder"),
        ([image, "--out", image], "--out = .*IMAGE itself"),
    ):
        done = pad("show", *arguments, "--models", models_toml)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert re.search(told, done.err), done.err
    assert image.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "cut.png", "text.png"]
