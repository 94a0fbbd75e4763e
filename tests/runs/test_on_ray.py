"""On Ray, stages are dealt out to fit any cluster, ports are closed to others, and a mistake is one line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.placement import cpus_of_worker, make_pools, room
from pad_pipeline.workflows.engine.ray import RayEngine
from pad_pipeline.workflows.engine.ray_session import Cluster, ray_session
from pad_pipeline.workflows.runs.options import RunOptions
from tests.cluster import cluster, is_free, nodes_by_demand
from tests.conftest import wait_for
from tests.engine.chains import Told, begin, doing
from tests.runs.conftest import Pad
from tests.runs.processes import LOOPBACK, descendants, finished, listening, process, ray_workers

CHAIN = [
    Link("decode", []),
    *(Link(name, [], on_gpu=True) for name in ("tag", "ground", "segment")),
    Link("patchify", []),
]


def test_workers_fit_every_cluster() -> None:
    """Workers that did not all fit waited for ever, and GPU shares above 1 were refused (2 GPUs, 8 GPUs and 1 CPU)."""
    for nodes, gpus in (
        ([{"CPU": 1.0}], 0),
        ([{"CPU": 0.5}], 0),
        ([{"CPU": 8.0, "GPU": 1.0}], 1),
        ([{"CPU": 8.0, "GPU": 1.0}], 0.5),
        ([{"CPU": 100.0, "GPU": 8.0}, {"CPU": 2.0, "GPU": 8.0}, {"CPU": 64.0}], 1),
        ([{"CPU": 4.0, "GPU": 3.0}], 0.3),
    ):
        pools, workers = make_pools(CHAIN, gpus), room(nodes, gpus)
        cpus = cpus_of_worker(nodes, pools, workers)
        assert workers >= 1 and cpus > 0
        for node in nodes:
            teams = room([node], gpus)
            assert sum(pool.gpus for pool in pools) * teams <= node.get("GPU", 0)
            assert cpus * len(pools) * teams <= node["CPU"]
    assert room([{"GPU": 1.0}, {"CPU": 1.0}], 1) == 1 and room([{}, {"GPU": 3.0}], 0.3) == 10
    assert cpus_of_worker([], make_pools(CHAIN, 1), 0) > 0
    # Twenty workers that wait for nodes do not all begin on the first one.
    assert cpus_of_worker([], make_pools(CHAIN, 0), 0) == cpus_of_worker([{"CPU": 4.0}], make_pools(CHAIN, 0), 0) == 1


def test_models_share_a_gpu_and_what_needs_none_is_kept_off_it() -> None:
    """Decoding ahead of the models and writing behind them leave the GPU no pause. Without models a GPU means nothing:
    it used to limit the workers that only read and write."""

    def pools(gpus: float, chain: list[Link] = CHAIN) -> dict[str, tuple[float, bool]]:
        return {pool.link.name: (pool.gpus, pool.main) for pool in make_pools(chain, gpus)}

    assert pools(1) == {"decode": (0, False), "tag+ground+segment": (1, True), "patchify": (0, False)}
    assert pools(0) == {"decode+tag+ground+segment+patchify": (0, True)}
    assert pools(1, [CHAIN[0], CHAIN[-1]]) == {"decode+patchify": (0, True)}


def test_numbers_of_workers_and_waits_are_checked_before_anything_is_read(pad: Pad, tmp_path: Path) -> None:
    """Catches a mistake in `--workers 8-2` or `--wait 5` that shows after an hour of planning."""
    for option, value in (("--workers", "8-2"), ("--workers", "0"), ("--wait", "5"), ("--gpus", "0.5")):
        engine = "local" if option == "--gpus" else "ray"
        done = pad("build", "--images", tmp_path / "none", "--out", tmp_path / "out", "--engine", engine, option, value)
        assert done.code == 2 and done.err.startswith(f"error: {option} = {value}: "), done.err
    assert RunOptions(workers=3).worker_range == (1, 3)
    assert RunOptions(workers="2-8").worker_range == (2, 8)
    assert RunOptions().worker_range == (1, 0)


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


@pytest.mark.long
def test_a_run_waits_for_a_gpu_and_then_stops(world: World, common: list[object], tmp_path: Path) -> None:
    """A cluster without a GPU. Catches models that run on the CPUs without a word, and a run that waits for ever."""
    out = tmp_path / "out"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with cluster(cpus=2) as address:
        build = ["build", "--images", world.images, *common, "--engine", "ray", "--address", address, "--out", out]
        code, said = finished(process([*build, "--wait", "12s"], env=clean))
        assert code == 4, said
        # Lines of progress come by the clock, between others.
        asked, *_, error = [line for line in said.splitlines()[1:] if not line.startswith("build: 0 of 1 shard")]
        assert asked.startswith("Waiting up to 12 seconds: the cluster has 0 of at least 1 workers for tag+")
        assert "which need 1 GPUs each. --gpus 0 computes on the CPU." in asked
        assert error.startswith("error: --wait = 12 s: the cluster has 0 of at least 1 workers")
        assert not list(out.glob("pad-*"))


@pytest.mark.long
@pytest.mark.skipif(not is_free(6379), reason="Ray's provider of nodes wants port 6379, which is taken")
def test_an_autoscaler_is_asked_for_gpus_from_the_start(tmp_path: Path) -> None:
    """The head alone has neither CPU nor GPU, and Ray's autoscaler adds nodes with or without a GPU for what is asked.
    Catches a run that asks for half a CPU, gets a node without a GPU, and computes there."""
    notes = tmp_path / "notes"
    links = doing("node", *(f"{number}-0" for number in range(6)), notes=notes)
    links = [link._replace(on_gpu=link.name == "first") for link in links]
    told = Told(6)
    with cluster(cpus=0, port=6379, autoscaler=nodes_by_demand(2)) as address:
        engine = RayEngine(Cluster(address, None, 120.0), (1, 2))
        done = list(engine.run(links, map(begin, range(6)), told))
        with ray_session(address) as ray:
            with_gpu = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
    assert sorted(one.number for one in done) == list(range(6)), told.text.getvalue()
    nodes = [line.removeprefix("node ") for line in notes.read_text().splitlines() if line.startswith("node ")]
    assert len(nodes) >= 6 and set(nodes) <= with_gpu


@pytest.mark.slow
def test_ray_listens_on_loopback_alone(world: World, common: list[object], tmp_path: Path) -> None:
    """Who reaches Ray's ports can run code; it used to listen on every address of the machine."""
    out = tmp_path / "out"
    started = process(["build", "--images", world.images, *common, "--engine", "ray", "--shard-size", 2, "--out", out])
    wait_for(lambda: ray_workers(started.pid), started)
    addresses = listening(descendants(started.pid))
    started.send_signal(signal.SIGTERM)
    code, said = finished(started)
    assert code == 143, said
    assert "continue" in said
    assert addresses and set(addresses) <= LOOPBACK
