"""On a CPU, a run with Ray uses all cores by itself: as many workers as cores, shards and memory allow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import Folder
from pad_pipeline.weights import ModelFile
from pad_pipeline.workflows.engine.ray_session import Cluster
from pad_pipeline.workflows.runs import build, cpu_workers
from pad_pipeline.workflows.runs.cpu_workers import with_cpu_workers
from pad_pipeline.workflows.runs.options import RunOptions
from tests.runs.conftest import Pad

SMALL, LARGE = 25_000_000, 9_100_000_000
"""Bytes of the miniature's files, and of the preset `paper`."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 cores, 64 GB, no GPU."""
    monkeypatch.setattr(cpu_workers, "cores", lambda: 16)
    monkeypatch.setattr("pad_pipeline.workflows.runs.options.cores", lambda: 16)
    monkeypatch.setattr(cpu_workers, "memory", lambda: 64_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def chosen(shards: int, model_bytes: int | None, **given: object) -> tuple[str, int]:
    """The workers of a run with Ray, and the threads of each of their models."""
    options = with_cpu_workers(RunOptions(engine="ray", **given), shards, model_bytes)
    return options.workers, options.used_threads


@pytest.mark.usefixtures("machine")
def test_cores_are_shared_out_as_far_as_shards_and_memory_go() -> None:
    """Catches small models on one core of sixteen, large ones that are loaded sixteen times, cores without work where
    shards are few or workers do not divide the cores, and memory that a user's own class takes unseen."""
    assert chosen(1000, SMALL) == ("16", 1)
    assert chosen(3, SMALL) == ("3", 5)
    assert chosen(12, SMALL) == ("8", 2)
    assert chosen(1000, LARGE) == ("1", 16)
    assert chosen(1000, LARGE // 3) == ("4", 4)
    assert chosen(1000, None) == ("", 16)
    assert chosen(1000, SMALL, threads=4) == ("4", 4)
    assert chosen(0, SMALL) == ("1", 16)


@pytest.mark.usefixtures("machine")
def test_what_the_user_says_and_what_a_cluster_has_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches workers on the CPU beside an idle GPU, or without being asked, on somebody's cluster; and a GPU that Ray
    sees and PyTorch can't use, which one worker would reserve."""
    assert chosen(1000, SMALL, workers=2) == ("2", 8)
    assert chosen(1000, SMALL, address="auto") == ("", 16)
    assert with_cpu_workers(RunOptions(), 1000, SMALL) == RunOptions()
    assert with_cpu_workers(RunOptions(engine="ray"), 1000, SMALL).gpus == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen(1000, SMALL) == ("", 16)
    assert chosen(1000, SMALL, gpus=0) == ("16", 1)


@pytest.mark.usefixtures("machine")
def test_a_run_without_models_shares_them_too_and_records_the_same_threads_on_each_engine() -> None:
    """Catches an import that can't change engines without a note on an environment that has changed."""
    assert chosen(1000, 0) == ("16", 16)


@pytest.mark.usefixtures("machine")
def test_a_build_asks_for_them_and_records_their_threads(
    world: World, models_toml: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a number of workers that is chosen and not used, or another number of threads in run.json."""
    asked = []

    class Stopped(BaseException):
        pass

    def engine(cluster: Cluster, workers: tuple[int, int]) -> None:
        asked.append((cluster.gpus, workers))
        raise Stopped

    monkeypatch.setattr(build, "RayEngine", engine)
    command = ["build", "--images", world.images, "--models", models_toml, "--view-size", 112, "--shard-size", 5]
    with pytest.raises(Stopped):
        pad(*command, "--out", tmp_path)
    assert asked == [(0, (1, 2))]
    assert Run.read(Folder(tmp_path)).environment["threads"] == "8"


def test_a_size_that_is_not_known_is_not_nothing(tmp_path: Path) -> None:
    """Catches a model that counts as no model: its run would have a worker on each core of a machine with a GPU."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345")
    assert ModelFile("a", str(folder)).size == 7
    assert ModelFile("a", str(folder), patterns=["model*"]).size == 5
    assert ModelFile("a", str(folder / "config.json")).size == 2
    assert ModelFile("a", "nobody/never-fetched").size is None
