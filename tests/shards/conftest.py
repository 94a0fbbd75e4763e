"""What the tests of the written format share: two small runs, made once, and a copy of one to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pad_pipeline.miniature.files import World

Pad = Callable[..., Any]


class Runs(NamedTuple):
    """What the tests damage copies of."""

    good: Path
    """Two shards, 4 and 3 images: empty ones, one that failed."""
    other: Path
    """The first shard's images under another view, and another plan."""
    command: list[object]
    """What made `good`, but for --out."""


@pytest.fixture(scope="session")
def runs(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from pad_pipeline.workflows import cli

    home = tmp_path_factory.mktemp("runs")
    coco = json.loads(world.instances.read_text())
    coco["images"] = [*coco["images"][:6], {"id": 10**6, "file_name": "missing.png"}]
    blank = {entry["id"] for entry in coco["images"][1:3]}
    kept = {entry["id"] for entry in coco["images"]} - blank
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] in kept]
    (home / "coco.json").write_text(json.dumps(coco))
    command: list[object] = ["import", "coco", "--annotations", home / "coco.json", "--images", world.images]
    command += ["--captions", world.llava, "--models", models_toml, "--view-size", 112, "--shard-size", 4]
    for more in (["--out", home / "good"], ["--out", home / "other", "--fit", "pad", "--limit", 5]):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr("sys.argv", ["pad", *map(str, [*command, *more])])
            cli.main()
        assert not end.value.code
    return Runs(home / "good", home / "other", command)


@pytest.fixture
def folder(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the good run."""
    shutil.copytree(runs.good, tmp_path / "run")
    return tmp_path / "run"
