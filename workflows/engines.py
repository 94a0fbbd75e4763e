"""Run a chain of stages over shards: in this process, or on Ray. The same callables, so the same bytes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pad_pipeline.errors import UserError
from workflows.links import Link, LinkActor

Engine = Literal["ray", "local"]
Totals = dict[str, int]


def run_local(chain: list[Link], numbers: list[int]) -> Iterator[Totals]:
    """One shard after another through all stages, in this process; what each shard came to, as it is committed."""
    if not numbers:
        return
    runs = [link.build() for link in chain]
    for number in numbers:
        value: Any = number
        for run in runs:
            value = run(value)
        yield value


class RayEngine:
    """Ray Data with a shard as the row and a pool of actors for each stage.

    Args:
        address: of a running cluster; empty starts Ray on this machine, and stops it at the end.
        workers: actors for each stage; 0 for one per GPU, or one where there is no GPU.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers

    def run(self, chain: list[Link], numbers: list[int]) -> Iterator[Totals]:
        """What each shard came to, as it is committed; in no order."""
        if not numbers:
            return
        # Before Ray is imported: it reads these once.
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
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise UserError(
                "--address",
                self.address or "local",
                f"Ray can't be joined there ({error})",
                "start a cluster with `ray start --head`, or use --engine local",
            ) from error

    def _stream(self, ray: Any, chain: list[Link], numbers: list[int]) -> Iterator[Totals]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        actors = self.workers or max(gpus, 1)
        on_gpu = sum(link.on_gpu for link in chain)
        # Every pool must fit at once, or the last stage waits for ever: shares of what there is, rounded down.
        cpus = max(int(900 * resources.get("CPU", 1) / (actors * len(chain))) / 1000, 0.001)
        share = int(1000 * gpus / (actors * on_gpu)) / 1000 if gpus and on_gpu else 0
        data = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        for link in chain:
            data = data.map(
                LinkActor,
                fn_constructor_args=(link,),
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=cpus,
                num_gpus=share if link.on_gpu and share else None,
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
