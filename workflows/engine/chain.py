"""The operations that run in one worker. This module imports no model, so that a worker imports only its own models."""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.stages.base import Stage
from pad_pipeline.workflows.engine.gpu_use import GpuUse

NO_MEMORY = 71
"""The exit code of a worker process that ends because its memory ran out, as if the system had killed it."""


class Task(NamedTuple):
    """A shard to work on, or some rows of a shard."""

    number: int
    """Number of the shard."""
    retry: bool = False
    """True if the shard is finished, and only its failed images are tried again."""
    rows: tuple[int, int] | None = None
    """Range of rows: the first row, and one past the last. A range only shows whether its rows kill the process, and
    nothing is written. None is the whole shard."""
    killers: tuple[tuple[int, str], ...] = ()
    """Rows that kill the process, each with the stage in which the process died."""


class Done(NamedTuple):
    """The result of a task."""

    number: int
    """Number of the shard."""
    totals: dict[str, int]
    """Numbers of images by status, of tags and of regions; empty if nothing was written."""


class Operation(NamedTuple):
    """One operation of a chain, which the worker builds: reading a shard, a stage, or writing a shard."""

    name: str
    build: Callable[[], Callable[[Any], Any]]


class Link(NamedTuple):
    """The operations of a chain that share a worker."""

    name: str
    operations: list[Operation]
    on_gpu: bool = False
    breaker: int = 0
    """See `Stage.breaker`."""
    before: int = 0
    """Number of operations at the beginning that work on the next shard while the others work on this one."""
    after: int = 0
    """Number of operations at the end that work on this shard while the others work on the next one."""


class StageWork(NamedTuple):
    """The amount of work that a stage has done."""

    images: int = 0
    failed: int = 0
    seconds: float = 0.0
    gpu_use: float = 0.0
    """The sum of `GpuUse.recent` over the workers whose GPU use is known."""
    gpus: int = 0
    """Number of these workers."""


class MemoryRanOut(UserError):
    """The memory ran out in an operation. A worker process ends over it, and its task is tried again in a new one."""


@contextmanager
def _memory_of(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        remedy = "give it more memory, or lower a batch_size, then run the same command again"
        raise MemoryRanOut("stage", name, f"the memory ran out ({error})", remedy) from error


class Chain:
    """The operations of one link, built in the worker that runs them. `tick` is called after each batch of a stage."""

    def __init__(self, link: Link, tick: Callable[[], None] = lambda: None) -> None:
        self.operations: list[Callable[[Any], Any]] = []
        for operation in link.operations:
            with _memory_of(operation.name):
                self.operations.append(operation.build())
        self.names = [operation.name for operation in link.operations]
        self.stages = [operation for operation in self.operations if isinstance(operation, Stage)]
        for stage in self.stages:
            stage.tick, stage.breaker = tick, link.breaker
        self._gpu = GpuUse() if link.on_gpu else None

    def run(self, item: Any, first: int = 0, last: int | None = None) -> Any:
        """Pass `item` through the operations from `first` to before `last`, and return the result.

        Raises:
            MemoryRanOut: the memory ran out.
            Exception: any other exception of an operation.
        """
        for name, operation in list(zip(self.names, self.operations, strict=True))[first:last]:
            with _memory_of(name):
                item = operation(item)
        return item

    def work(self) -> dict[str, StageWork]:
        """Return the work that each stage has done, by the name of the stage."""
        use = self._gpu.recent() if self._gpu else None
        gpu = (0.0, 0) if use is None else (use, 1)
        return {stage.name: StageWork(stage.images, stage.failed, stage.seconds, *gpu) for stage in self.stages}


class LinkActor:
    """A Ray actor that runs a link.

    An exception is returned to the driver, which raises it. Ray would wrap a raised exception in several of Ray's,
    and print pages of text.
    """

    chain: Chain | None = None

    def place(self) -> str:
        """Return the id of the actor's node. This answer comes before the models are loaded."""
        import ray

        from pad_pipeline.workflows.engine.ray_session import hide_gpus

        hide_gpus(ray)
        return str(ray.get_runtime_context().get_node_id())

    def load(self, link: Link) -> tuple[Exception | None, bool]:
        """Build the chain.

        Returns:
            The exception that the build raised, if any; and whether Ray gave the actor a GPU that PyTorch does not see.
        """
        import ray

        try:
            self.chain = Chain(link)
        except Exception as error:
            return portable(error), False
        torch = sys.modules.get("torch")
        return None, bool(ray.get_gpu_ids()) and torch is not None and not torch.cuda.is_available()

    def run(self, item: Any, first: int, last: int | None) -> tuple[Exception | Done | None, Any]:
        """Call `Chain.run`, and return two values: a small one for the driver, and one for the next worker only."""
        assert self.chain is not None
        try:
            item = self.chain.run(item, first, last)
        except MemoryRanOut:
            os._exit(NO_MEMORY)
        except Exception as error:
            return portable(error), None
        return (item, None) if isinstance(item, Done) else (None, item)

    def work(self) -> dict[str, StageWork]:
        """Call `Chain.work`, also while the chain runs."""
        return self.chain.work() if self.chain else {}


def stay(seconds: float) -> None:
    """Do nothing for some seconds. As a Ray task this shows that a node lives, and goes on living."""
    time.sleep(seconds)


def merged(links: Sequence[Link]) -> Link:
    """Return one link with the operations of several links. If some of them are on a GPU, the links before and after
    those work at the same time, so that the GPU need not wait for them."""
    operations = [operation for link in links for operation in link.operations]
    name, on_gpu = "+".join(link.name for link in links), [link.on_gpu for link in links]
    before = sum(len(link.operations) for link in links[: on_gpu.index(True)]) if any(on_gpu) else 0
    after = sum(len(link.operations) for link in links[len(links) - on_gpu[::-1].index(True) :]) if any(on_gpu) else 0
    return Link(name, operations, any(on_gpu), links[0].breaker, before, after)


def add_work(parts: list[dict[str, StageWork]]) -> dict[str, StageWork]:
    """Return the work of each stage, summed over workers."""
    sums: dict[str, StageWork] = {}
    for name, work in (entry for part in parts for entry in part.items()):
        images, failed, seconds, gpu_use, gpus = sums.get(name, StageWork())
        counts = StageWork(images + work.images, failed + work.failed, seconds + work.seconds)
        sums[name] = counts._replace(gpu_use=gpu_use + work.gpu_use, gpus=gpus + work.gpus)
    return sums


def without_gpus(parts: dict[str, StageWork]) -> dict[str, StageWork]:
    """Return the work of each stage without its GPU use: all that stays of a worker that is gone."""
    return {name: work._replace(gpu_use=0.0, gpus=0) for name, work in parts.items()}


def portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with the traceback of `error` as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))  # some exceptions can't be unpickled
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent
