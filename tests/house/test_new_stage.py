"""A stage with a model is added in four files: its own, the list of steps, the record, and the list of kinds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.conftest import ROOT
from tests.house.toys import CHANGED, NEW

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with two more stages."""
    home = tmp_path_factory.mktemp("house")
    for folder in ("pad_pipeline", "stages", "workflows"):
        shutil.copytree(ROOT / folder, home / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in NEW.items():
        (home / name).write_text(text)
    for name, changes in CHANGED.items():
        text = (home / name).read_text()
        for before, after in changes:
            assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
            text = text.replace(before, after)
        (home / name).write_text(text)
    return home


@pytest.fixture(scope="module")
def files(models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models files: small models and the judge; and with the finder in the place of detector and segmenter."""
    folder = tmp_path_factory.mktemp("models") / "models"
    shutil.copytree(models_toml.parent, folder)
    (folder / "limit.txt").write_text("255")
    text = models_toml.read_text()
    (folder / "judge.toml").write_text(text + '\n[judge]\nlimit = "limit.txt"\n')
    kept = [part for part in text.split("\n[") if not part.startswith(("detector]", "segmenter]"))]
    (folder / "finder.toml").write_text("\n[".join(kept) + "\n[finder]\nmost = 1\n")
    return {"judge": folder / "judge.toml", "finder": folder / "finder.toml"}


def run(house: Path, *commands: list[object]) -> str:
    """Run commands of `pad` from the copy, one after another in one process; what they print."""
    code = """
import json, sys
from pad_pipeline.workflows import cli
from pad_pipeline.workflows.commands import runs
runs.ISOLATED = False
for command in json.loads(sys.argv[1]):
    sys.argv = ["pad", *command]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"pad {' '.join(command)}: exit code {end.code}")
"""
    environment = os.environ | {"PYTHONPATH": str(house), "PYTHONSAFEPATH": "1"}
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", code, words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_stage_with_a_model_takes_four_files(
    house: Path, files: dict[str, Path], world: World, tmp_path: Path
) -> None:
    """Catches a ladder over stages that somebody builds again: the toy would be left out of the chain, of run.json, of
    `pad models` or of `--redo-from`."""
    assert len([name for name in NEW if "judge" in name]) + len(CHANGED) <= 4
    other = files["judge"].with_name("other.toml")
    other.write_text(files["judge"].read_text().replace("limit.txt", "other.txt"))
    other.with_name("other.txt").write_text("510")
    local = ["--engine", "local"]
    printed = run(
        house,
        ["models", "list", files["judge"]],
        ["models", "check", files["judge"]],
        [
            "build",
            "--images",
            world.images,
            "--models",
            files["judge"],
            *local,
            "--limit",
            2,
            "--out",
            tmp_path / "out",
        ],
        ["verify", tmp_path / "out"],
        [
            "build",
            "--images",
            tmp_path / "out",
            "--redo-from",
            "judge",
            "--models",
            other,
            *local,
            "--out",
            tmp_path / "2",
        ],
    )
    assert "judge.limit" in printed and "a limit of 255.0" in printed
    made = json.loads((tmp_path / "out/run.json").read_text())
    assert made["settings"]["judge"]["limit"].endswith("limit.txt") and len(made["fingerprints"]["judge"]) == 64
    before, after = (
        [shards.sample(name, row).meta for name, row in shards.rows()]
        for shards in (open_shards(tmp_path / "out"), open_shards(tmp_path / "2"))
    )
    assert all(0 < meta["brightness"] < 1 for meta in before)
    assert [meta["brightness"] * 2 for meta in after] == pytest.approx([meta["brightness"] for meta in before])
    assert [meta["regions"] for meta in after] == [meta["regions"] for meta in before]


def test_a_model_for_boxes_and_masks_in_one_needs_no_special_case(
    house: Path, files: dict[str, Path], world: World, tmp_path: Path
) -> None:
    """As SAM 3 does it. Catches code that assumes that each step has a model of its own."""
    build = ["build", "--images", world.images, "--models", files["finder"], "--engine", "local", "--limit", 2]
    run(house, [*build, "--out", tmp_path / "out"], ["verify", "--deep", tmp_path / "out"])
    made = json.loads((tmp_path / "out/run.json").read_text())["settings"]
    assert made["detector"] == made["segmenter"] == {"most": 1, "batch_size": 8}
    shards = open_shards(tmp_path / "out")
    for name, row in shards.rows():
        meta = shards.sample(name, row).meta
        assert [region["label"] for region in meta["regions"]] == [tag["label"] for tag in meta["tags"][:1]]
