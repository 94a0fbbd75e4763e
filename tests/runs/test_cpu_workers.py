"""On a CPU, a run with Ray uses all cores by itself: as many workers as cores, shards and memory allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs import cpu_workers
from pad_pipeline.workflows.runs.cpu_workers import memory, with_cpu_workers
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


def chosen(shards: int, model_bytes: int, **given: object) -> tuple[str, int]:
    """The workers of a run with Ray, and the threads of each of their models."""
    options = with_cpu_workers(RunOptions(engine="ray", **given), shards, model_bytes)
    return options.workers, options.used_threads


@pytest.mark.usefixtures("machine")
def test_cores_are_shared_out_as_far_as_shards_and_memory_go() -> None:
    """Catches small models on one core of sixteen, large ones that are loaded sixteen times, and cores without work
    where shards are few."""
    assert chosen(1000, SMALL) == ("16", 1)
    assert chosen(3, SMALL) == ("3", 5)
    assert chosen(1000, LARGE) == ("2", 8)
    assert chosen(1000, 10 * LARGE) == ("1", 16)
    assert chosen(1000, SMALL, threads=4) == ("4", 4)
    assert chosen(0, SMALL) == ("1", 16)


@pytest.mark.usefixtures("machine")
def test_what_the_user_says_and_what_a_cluster_has_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches workers on the CPU beside an idle GPU, or without being asked, on somebody's cluster."""
    assert chosen(1000, SMALL, workers=2) == ("2", 8)
    assert chosen(1000, SMALL, address="auto") == ("", 16)
    assert with_cpu_workers(RunOptions(), 1000, SMALL) == RunOptions()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen(1000, SMALL) == ("", 16)
    assert chosen(1000, SMALL, gpus=0) == ("16", 1)


@pytest.mark.usefixtures("machine")
def test_a_run_without_models_shares_them_too_and_records_the_same_threads_on_each_engine() -> None:
    """Catches an import that can't change engines without a note on an environment that has changed."""
    assert chosen(1000, 0) == ("16", 16)


def test_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches workers that are killed because the machine has more memory than the container may use."""
    for text, limit in (("5000\n", 5000), ("max\n", None), ("9223372036854771712\n", None)):
        file = tmp_path / "memory.max"
        file.write_text(text)
        monkeypatch.setattr(cpu_workers, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(file)))
        found = memory()
        assert found == limit if limit else found > 5000


@pytest.mark.slow
def test_a_build_uses_all_cores(
    world: World, common: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default engine: catches a number of workers that is chosen and not used, or recorded as another one."""
    monkeypatch.setattr("pad_pipeline.workflows.runs.options.cores", lambda: 2)
    monkeypatch.setattr(cpu_workers, "cores", lambda: 2)
    done = pad("build", "--images", world.images, *common[:4], "--shard-size", 5, "--out", tmp_path)
    assert done.code == 0, done.err
    assert Run.read(Folder(tmp_path)).environment["threads"] == "1"
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stages"]["tag"]["workers"] == 2
