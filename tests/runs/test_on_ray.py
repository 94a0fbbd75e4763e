"""On Ray, stages are dealt out to fit any cluster, ports are closed to others, and a mistake is one line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.placement import make_pools
from tests.conftest import wait_for
from tests.runs.conftest import Pad
from tests.runs.processes import LOOPBACK, descendants, finished, listening, process, ray_workers

CHAIN = [
    Link("decode", []),
    *(Link(name, [], on_gpu=True) for name in ("tag", "ground", "segment")),
    Link("patchify", []),
]


def test_placement_fits_every_cluster() -> None:
    """Pools that did not all fit waited for ever, and GPU shares above 1 were refused (2 GPUs, 8 GPUs and 1 worker)."""
    for cpus, gpus, workers in (
        (1, 0, 0),
        (2, 0, 3),
        (0.5, 0, 1),
        (8, 1, 0),
        (16, 2, 1),
        (16, 4, 2),
        (100, 8, 1),
        (4, 2, 9),
    ):
        pools = make_pools(CHAIN, cpus, gpus, workers)
        assert sum(pool.workers * pool.gpus for pool in pools) <= gpus
        assert sum(pool.workers * pool.cpus for pool in pools) <= max(cpus, 0.1)
        assert all(pool.workers >= 1 and pool.cpus > 0 for pool in pools)
        assert all((pool.gpus > 0) == (pool.link.on_gpu and gpus > 0) for pool in pools)


def test_models_share_a_gpu_and_what_needs_none_is_kept_off_it() -> None:
    """Decoding ahead of the models and writing behind them leave the GPU no pause. Without models a GPU means nothing:
    it used to limit the workers that only read and write."""

    def dealt(gpus: int, workers: int = 0, chain: list[Link] = CHAIN) -> dict[str, tuple[int, int]]:
        return {pool.link.name: (pool.workers, pool.gpus) for pool in make_pools(chain, 64, gpus, workers)}

    assert dealt(8) == {"decode": (8, 0), "tag+ground+segment": (8, 1), "patchify": (8, 0)}
    assert dealt(8, workers=2)["tag+ground+segment"] == (2, 1)
    assert dealt(1, workers=9)["tag+ground+segment"] == (1, 1)
    assert dealt(0, workers=2) == {"decode+tag+ground+segment+patchify": (2, 0)}
    assert dealt(1, workers=9, chain=[CHAIN[0], CHAIN[-1]]) == {"decode+patchify": (9, 0)}


@pytest.mark.slow
def test_a_mistake_is_one_line_on_ray_too(pad: Pad, world: World, models_toml: Path, tmp_path: Path) -> None:
    """Ray used to retry the actor that refused its checkpoint, and to print pages before the reason."""
    for name in ("tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    (tmp_path / "models.toml").write_text(
        models_toml.read_text().replace('"tagger.safetensors"', '"segmenter.safetensors"')
    )
    done = pad("build", "--images", world.images, "--models", tmp_path / "models.toml", "--out", tmp_path / "out")
    assert done.code == 2
    planned, error = done.err.splitlines()
    assert planned.startswith("10 images are planned")
    assert "look like SAM" in error


@pytest.mark.slow
def test_ray_listens_on_loopback_alone(world: World, common: list[object], tmp_path: Path) -> None:
    """Who reaches Ray's ports can run code; it used to listen on every address of the machine."""
    out = tmp_path / "out"
    started = process(["build", "--images", world.images, *common, "--engine", "ray", "--shard-size", 2, "--out", out])
    wait_for(lambda: ray_workers(started), started)
    addresses = listening(descendants(started))
    started.send_signal(signal.SIGTERM)
    code, said = finished(started)
    assert code == 143, said
    assert "continue" in said
    assert addresses and set(addresses) <= LOOPBACK
