"""Run a chain of stages over shards: in this process, or on Ray. The same callables, so the same bytes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pad_pipeline.errors import UserError
from stages.base import Report, Stage
from workflows.links import Link, LinkActor, run_steps
from workflows.progress import Totals

Engine = Literal["ray", "local"]


def run_local(chain: list[Link], numbers: list[int], report: Report) -> Iterator[Totals]:
    """One shard after another through all stages, in this process; what each shard came to, as it is committed."""
    if not numbers:
        return
    steps = [step for link in chain for step in link.build()]
    for step in steps:
        if isinstance(step, Stage):
            step.report = report
    for number in numbers:
        yield run_steps(steps, number)


class Pool(NamedTuple):
    """The actors of one link, and what each holds."""

    actors: int
    cpus: float
    gpus: int


def placement(chain: list[Link], cpus: float, gpus: int, workers: int) -> tuple[list[Link], list[Pool]]:
    """Which links run where.

    With GPUs, all stages that want one share an actor, and each actor has a GPU to itself: no model waits for another
    pool's place, and every GPU does the same work. Without, each link has a pool of its own. All pools must fit at
    once, or the last one would wait for ever; so the actors of all together hold half of the CPUs, as shares.

    Args:
        chain: the links of the run.
        cpus: of the cluster.
        gpus: of the cluster.
        workers: actors for each link; 0 for one per GPU, or one.
    """
    actors = min(workers or gpus, gpus) if gpus else max(workers, 1)
    if gpus:
        fused: list[Link] = []
        for link in chain:
            if fused and link.on_gpu and fused[-1].on_gpu:
                name = f"{fused[-1].name}+{link.name}"
                fused[-1] = Link(name, [*fused[-1].builders, *link.builders], on_gpu=True)
            else:
                fused.append(link)
        chain = fused
    share = min(1.0, max(0.001, int(500 * cpus / (actors * len(chain))) / 1000))
    return chain, [Pool(actors, share, 1 if link.on_gpu and gpus else 0) for link in chain]


class RayEngine:
    """Ray Data with a shard as the row and a pool of actors for each link of the chain.

    Args:
        address: of a running cluster; empty starts Ray on this machine, and stops it at the end.
        workers: actors for each link; 0 for one per GPU, or one where there is no GPU.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers

    def run(self, chain: list[Link], numbers: list[int]) -> Iterator[Totals]:
        """What each shard came to, as it is committed; in no order."""
        if not numbers:
            return
        # Before Ray is imported, which reads these once: no notes about its own future, no notes of its C++ parts.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _quiet_stderr():  # Ray announces there that it was told to be quiet
            import ray

            self._start(ray)
        try:
            yield from self._stream(ray, chain, numbers)
        except ray.exceptions.RayError as error:  # Ray's own troubles; what a stage raises comes as a value
            rule = f"Ray stopped the run ({type(error).__name__}: {str(error).splitlines()[0]})"
            raise UserError("--engine", "ray", rule, "run the same command again to resume") from error
        finally:
            ray.shutdown()

    def _start(self, ray: Any) -> None:
        options: dict[str, Any] = {"include_dashboard": False}
        if self.address:  # the cluster's nodes may lack this package, or have another version of it
            packages = [str(Path(__file__).parents[1] / name) for name in ("pad_pipeline", "stages", "workflows")]
            options = {"runtime_env": {"py_modules": packages}}
        try:
            self._knock()
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                "--address",
                self.address or "local",
                f"Ray can't be joined there ({error})",
                "start a cluster with `ray start --head`; where it wants a token, set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN; or use --engine local",
            ) from error

    def _knock(self) -> None:
        """Whether anybody listens there at all: Ray itself would try for minutes."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=5).close()

    def _stream(self, ray: Any, chain: list[Link], numbers: list[int]) -> Iterator[Totals]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        chain, pools = placement(chain, resources.get("CPU", 1), int(resources.get("GPU", 0)), self.workers)
        data = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        for link, pool in zip(chain, pools, strict=True):
            data = data.map(
                LinkActor,
                fn_constructor_args=(link,),
                compute=ray.data.ActorPoolStrategy(size=pool.actors),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
            )
        for row in data.iter_rows():
            if isinstance(row["item"], Exception):
                raise row["item"]
            yield row["item"]


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what native code writes to this process's standard error nowhere. Exceptions come through as ever."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
