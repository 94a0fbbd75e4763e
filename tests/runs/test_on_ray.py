"""On Ray, stages are dealt out to fit any cluster, ports are closed to others, and a mistake is one line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.placement import Placement, deal_out, parse_pools
from tests.conftest import wait_for
from tests.runs.conftest import Pad
from tests.runs.processes import descendants, finished, process, ray_workers

CHAIN = [
    Link("decode", []),
    *(Link(name, [], on_gpu=True) for name in ("tag", "ground", "segment")),
    Link("patchify", []),
]


@pytest.mark.parametrize("how", ["fused", "pools", "auto"])
def test_placement_fits_every_cluster(how: Placement) -> None:
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
        pools = deal_out(CHAIN, cpus, gpus, how=how, workers=workers)
        assert sum(pool.workers * pool.gpus for pool in pools) <= gpus
        assert sum(pool.workers * pool.cpus for pool in pools) <= max(cpus, 0.1)
        assert all(pool.workers >= 1 and pool.cpus > 0 for pool in pools)
        assert all((pool.gpus > 0) == (pool.link.on_gpu and gpus > 0) for pool in pools)


def test_placement_puts_models_together_or_apart() -> None:
    """Fused: one worker a GPU holds all models. Apart: whole GPUs by cost where there are enough, else parts of one;
    and what the user asks for goes before either, unless the cluster can't give it."""

    def dealt(gpus: int, **how: object) -> dict[str, tuple[int, float]]:
        return {pool.link.name: (pool.workers, pool.gpus) for pool in deal_out(CHAIN, 64, gpus, **how)}  # type: ignore[arg-type]

    assert dealt(8) == {"decode": (8, 0), "tag+ground+segment": (8, 1), "patchify": (8, 0)}
    assert list(dealt(0, workers=2)) == ["decode+tag+ground+segment+patchify"]
    assert dealt(8, gpu_bytes=8 << 30) == dealt(8, how="pools")
    assert dealt(8, gpu_bytes=80 << 30) == dealt(8, how="fused")
    pools = dealt(9, how="pools")
    assert [pools[name] for name in ("tag", "ground", "segment")] == [(1, 1), (2, 1), (6, 1)]
    assert dealt(1, how="pools")["ground"] == (1, 0.333)
    asked = dealt(1, sizes=parse_pools(["tag=2x0.1", "segment=1x0.5", "decode=5", "ground=1x0.3"]))
    assert asked == {"decode": (5, 0), "tag": (2, 0.1), "ground": (1, 0.3), "segment": (1, 0.5), "patchify": (1, 0)}
    for sizes, gpus in ((["tag=3x0.5"], 1), (["nothing=1"], 1)):
        with pytest.raises(UserError, match="pools = "):
            dealt(gpus, sizes=parse_pools(sizes))
    for wrong in ("tag", "tag=0", "tag=-1", "tag=1x0", "tag=1x", "tag=two"):
        with pytest.raises(UserError, match=r"STAGE=WORKERS"):
            parse_pools([wrong])


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
    assert "look like SAM" in done.err
    assert done.err.count("\n") == 1, done.err


@pytest.mark.slow
def test_ray_listens_on_loopback_alone(world: World, common: list[object], tmp_path: Path) -> None:
    """Who reaches Ray's ports can run code; it used to listen on every address of the machine."""
    out = tmp_path / "out"
    started = process(["build", "--images", world.images, *common, "--engine", "ray", "--shard-size", 2, "--out", out])
    wait_for(lambda: ray_workers(started), started)
    addresses = _listening(descendants(started))
    started.send_signal(signal.SIGTERM)
    code, said = finished(started)
    assert code == 143, said
    assert "continue" in said
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert addresses and set(addresses) <= loopback


def _listening(processes: list[int]) -> list[str]:
    """The addresses on which some of these processes, being Ray's, listen."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = []
    for folder in (Path("/proc", str(number)) for number in processes):
        try:
            if b"ray" in (folder / "cmdline").read_bytes():
                held = {str(link.readlink()) for link in (folder / "fd").iterdir()}
                found += [sockets[name] for name in held & sockets.keys()]
        except OSError:
            continue
    return found
