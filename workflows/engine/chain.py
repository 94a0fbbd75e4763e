"""The steps that run in one worker. This module is separate, so that a worker imports only what its own steps need."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from pad_pipeline.stages.base import Stage


class Task(NamedTuple):
    """A shard to work on, or a part of it."""

    number: int
    retry: bool = False
    """Whether the shard is finished, and only its failed images are tried again."""
    part: tuple[int, int] | None = None
    """The first row and one past the last, to find out which row kills the process: nothing is written then. None for
    the whole shard."""
    killers: tuple[tuple[int, str], ...] = ()
    """Rows that kill each process that works on them, with the stage in which they do."""


class Done(NamedTuple):
    """The result of a task."""

    number: int
    totals: dict[str, int]
    """Images by status, tags and regions; empty where nothing was written."""


class Step(NamedTuple):
    """A step that is not built yet."""

    name: str
    build: Callable[[], Callable[[Any], Any]]


class Link(NamedTuple):
    """Steps that share a worker."""

    name: str
    steps: list[Step]
    on_gpu: bool = False
    breaker: int = 0
    """See `Stage.breaker`."""


class Worked(NamedTuple):
    """The work that a stage has done in one worker."""

    images: int = 0
    failed: int = 0
    seconds: float = 0.0


class Chain:
    """The steps of one link, built in the worker that runs them. `tick` is called after each batch of a stage."""

    def __init__(self, link: Link, tick: Callable[[], None] = lambda: None) -> None:
        self.steps = [step.build() for step in link.steps]
        self.names = [step.name for step in link.steps]
        for step in self.steps:
            if isinstance(step, Stage):
                step.tick, step.breaker = tick, link.breaker

    def run(self, item: Any, first: int = 0, last: int | None = None) -> Any:
        """Pass `item` through the steps from `first` to before `last`, and return the result."""
        for step in self.steps[first:last]:
            item = step(item)
        return item

    def worked(self) -> dict[str, Worked]:
        """Return the work of each stage by its name."""
        stages = [step for step in self.steps if isinstance(step, Stage)]
        return {stage.name: Worked(stage.images, stage.failed, stage.seconds) for stage in stages}


class LinkActor:
    """A link inside a Ray actor.

    An exception travels as a value to the driver, which raises it: Ray would print pages, and wrap the exception in
    several of its own.
    """

    def __init__(self, link: Link) -> None:
        self.chain: Chain | None = None
        self.failure: Exception | None = None
        try:
            self.chain = Chain(link)
        except Exception as error:
            self.failure = portable(error)

    def ready(self) -> tuple[Exception | None, str]:
        """Return the exception that was raised when the chain was built, if any, and the id of the actor's node."""
        import ray

        return self.failure, ray.get_runtime_context().get_node_id()

    def run(self, item: Any, first: int, last: int | None) -> tuple[Exception | Done | None, Any]:
        """Call `Chain.run`, and return two values: one for the driver, and one that only the next worker needs."""
        assert self.chain is not None
        try:
            item = self.chain.run(item, first, last)
        except Exception as error:
            return portable(error), None
        return (item, None) if isinstance(item, Done) else (None, item)

    def worked(self) -> dict[str, Worked]:
        """Call `Chain.worked`, also while the chain runs."""
        return self.chain.worked() if self.chain else {}


def add_worked(parts: list[dict[str, Worked]]) -> dict[str, Worked]:
    """Return the sums over workers."""
    sums: dict[str, Worked] = {}
    for name, worked in (entry for part in parts for entry in part.items()):
        images, failed, seconds = sums.get(name, Worked())
        sums[name] = Worked(images + worked.images, failed + worked.failed, seconds + worked.seconds)
    return sums


def portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with the traceback of `error` as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))  # not every exception can be made again
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent
