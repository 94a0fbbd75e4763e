"""What `pip install pad-pipeline` does not bring: where it is missing, a line says how to install it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry

from tests.commands.conftest import Pad


def hide(name: str, patch: pytest.MonkeyPatch) -> None:
    """A package that can't be imported, as where it is not installed."""
    patch.setitem(sys.modules, name, None)


@pytest.fixture
def training(models_toml: Path, shards: Path, tmp_path: Path) -> list[object]:
    """The least training there is."""
    towers = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm"]
    return ["train", "--shards", shards, *towers, "--batch-size", 4, "--steps", 1, "--out", tmp_path / "trained"]


def test_a_package_that_a_command_needs_is_named_with_its_extra(
    pad: Pad, training: list[object], shards: Path, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ImportError's traceback, or "install that package", would leave the user to find out which."""
    (tmp_path / "lora.toml").write_text('llm = "lora"\n')
    monkeypatch.delitem(_registry, "s3", raising=False)  # remembered from an earlier test
    build = ["build", "--images", "s3://bucket/images", "--models", models_toml, "--out", tmp_path / "out"]
    wanted: dict[str, tuple[list[object], str]] = {
        "s3fs": (build, "pad-pipeline[s3]"),
        "imagehash": (["duplicates", shards], "pad-pipeline[duplicates]"),
        "peft": ([*training, "--stage", 2, "--settings", tmp_path / "lora.toml"], "pad-pipeline[lora]"),
    }
    for name, (command, extra) in wanted.items():
        with monkeypatch.context() as patch:
            hide(name, patch)
            done = pad(*command)
        assert done.code == 2 and f"the package {name} is not installed; pip install '{extra}'" in done.err, done.err
        assert "Traceback" not in done.err


def test_what_is_left_out_for_want_of_a_package_is_told(
    pad: Pad, training: list[object], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for a log or a chart after hours must have been told that there would be none."""
    hide("tensorboard", monkeypatch)
    hide("matplotlib", monkeypatch)
    done = pad(*training, "--stage", 1)
    assert done.code == 0 and "no TensorBoard log is written, because" in done.err, done.err
    assert "pad-pipeline[tensorboard]" in done.err and not (tmp_path / "trained/tensorboard").exists()
    charts = ["--model", tmp_path / "trained", "--shards", shards, "--limit", 2, "--out", tmp_path / "analysis"]
    done = pad("analyze", "entropy", *charts)
    assert done.code == 0 and "no charts are drawn, because" in done.err, done.err
    assert "pad-pipeline[charts]" in done.err
    assert [path.name for path in (tmp_path / "analysis").iterdir()] == ["analysis.json"]
