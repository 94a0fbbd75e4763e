"""What runs in one worker: a few steps in a row. Kept apart, so that a worker imports only what its own steps need."""

from __future__ import annotations

import pickle
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from pad_pipeline.stages.base import Stage


class Task(NamedTuple):
    """A shard to be done."""

    number: int
    retry: bool = False
    """It is finished; only its failed images are tried again."""
    part: tuple[int, int] | None = None
    """Only these rows, first and one past the last, to find out which one kills the process: nothing is written."""
    killers: tuple[tuple[int, str], ...] = ()
    """Rows that kill each process that works on them, with the stage in which they do."""


class Done(NamedTuple):
    """What became of a task."""

    number: int
    totals: dict[str, int]
    """Images by status, tags and regions; empty where nothing was written."""


class Step(NamedTuple):
    """A step, not built yet."""

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
    """What a stage has come to in one worker."""

    images: int = 0
    failed: int = 0
    seconds: float = 0.0


class Chain:
    """The steps of a link, built: what a worker holds.

    Args:
        link: the recipe.
        tick: is called after each batch of a stage.
    """

    def __init__(self, link: Link, tick: Callable[[], None] = lambda: None) -> None:
        self.steps = [step.build() for step in link.steps]
        self.names = [step.name for step in link.steps]
        for step in self.steps:
            if isinstance(step, Stage):
                step.tick, step.breaker = tick, link.breaker

    def run(self, item: Any, first: int = 0, last: int | None = None) -> Any:
        """`item` through the steps from `first` to before `last`."""
        for step in self.steps[first:last]:
            item = step(item)
        return item

    def worked(self) -> dict[str, Worked]:
        """By stage."""
        stages = [step for step in self.steps if isinstance(step, Stage)]
        return {stage.name: Worked(stage.images, stage.failed, stage.seconds) for stage in stages}


class LinkActor:
    """A link inside a Ray actor.

    An exception travels as a value to the driver, which raises it: Ray would print pages, and hide what happened under
    layers of its own.
    """

    def __init__(self, link: Link) -> None:
        self.chain: Chain | None = None
        self.failure: Exception | None = None
        try:
            self.chain = Chain(link)
        except Exception as error:
            self.failure = portable(error)

    def ready(self) -> tuple[Exception | None, str]:
        """What went wrong when it was built, and the node it is on."""
        import ray

        return self.failure, ray.get_runtime_context().get_node_id()

    def run(self, item: Any, first: int, last: int | None) -> tuple[Exception | Done | None, Any]:
        """`Chain.run`, as two values: what the driver must know, and what only the next worker wants."""
        assert self.chain is not None
        try:
            item = self.chain.run(item, first, last)
        except Exception as error:
            return portable(error), None
        return (item, None) if isinstance(item, Done) else (None, item)

    def worked(self) -> dict[str, Worked]:
        """`Chain.worked`, asked while it runs."""
        return self.chain.worked() if self.chain else {}


def add_worked(parts: list[dict[str, Worked]]) -> dict[str, Worked]:
    """The sums over workers."""
    sums: dict[str, Counter[str]] = {}
    for part in parts:
        for name, worked in part.items():
            sums.setdefault(name, Counter()).update(worked._asdict())
    return {name: Worked(int(s["images"]), int(s["failed"]), float(s["seconds"])) for name, s in sums.items()}


def portable(error: Exception) -> Exception:
    """`error` as it can be sent to another process, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))  # not every exception can be made again
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent
