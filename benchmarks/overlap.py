"""How long the models of the local engine wait for reading and writing, with sleeps in the place of all work."""

from __future__ import annotations

import time
from functools import partial

from rich.console import Console

from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.stages.base import Stage
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Done, Link, Operation, Task
from pad_pipeline.workflows.engine.local import LocalEngine
from pad_pipeline.workflows.engine.progress import Progress


class Sleeping(Stage[None, None]):
    """Sleeps in the place of an operation, for each batch of 8 images."""

    batch_size = 8

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.sleep = name, seconds  # type: ignore[misc]

    def process(self, rows: list[ImageRecord], inputs: list[None]) -> list[None]:
        """Sleep."""
        time.sleep(self.sleep)
        return inputs

    def finish(self, row: ImageRecord, output: None) -> None:
        """Do nothing."""


def read(task: Task) -> Shard:
    """Return a shard of 64 images."""
    names = [f"{task.number}-{row}" for row in range(64)]
    return Shard(task.number, [ImageRecord(name, name, key=name) for name in names])


def written(shard: Shard) -> Done:
    """Return the result of a shard."""
    return Done(shard.number, {"images": len(shard.rows), "failed": 0})


def overlap(isolated: bool, shards: int = 20) -> tuple[float, float]:
    """Return the seconds that the local engine takes for shards after the first, and the share of them in which the
    models work. They sleep for 50 ms a batch, and reading and writing for 10 ms each."""
    links = [
        Link("decode", [
            Operation("plan", partial(partial, read)), Operation("decode", partial(Sleeping, "decode", 0.01)),
        ]),
        Link("models", [Operation("models", partial(Sleeping, "models", 0.05))], on_gpu=True),
        Link("patchify", [
            Operation("patchify", partial(Sleeping, "patchify", 0.01)), Operation("write", partial(partial, written)),
        ]),
    ]  # fmt: skip
    shown = Progress("benchmark", shards, 64 * shards, Console(quiet=True), None)
    run = LocalEngine(isolated).run(links, (Attempts(number, 64) for number in range(shards)), shown)
    next(run)
    began, before = time.perf_counter(), shown.stages["models"].work.seconds
    for _ in run:
        pass
    total = time.perf_counter() - began
    return total, (shown.stages["models"].work.seconds - before) / total
