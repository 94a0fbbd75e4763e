"""What runs in one actor: a few steps in a row. Kept apart, so that an actor imports only what its own steps need."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, Plan
from pad_pipeline.records import Shard
from pad_pipeline.shards.writer import write_shard


class ReadShard:
    """The first step of every chain: a shard's number -> its planned images."""

    def __init__(self, out: Path) -> None:
        self.plan = Plan(out / PLAN_NAME)

    def __call__(self, number: int) -> Shard:
        """The shard with nothing but its plan."""
        return Shard(number, self.plan.shard(number))


class WriteShard:
    """The last step of every chain: a finished shard -> its two files, and what is in them."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, shard: Shard) -> dict[str, int]:
        """Images by status, tags and regions."""
        try:
            return dict(write_shard(shard, self.out))
        except OSError as error:
            raise unwritable(self.out, error) from error


def unwritable(out: Path, error: OSError) -> UserError:
    """The error for an output folder that is full, read-only or gone."""
    rule = f"it can't be written ({error.strerror or error})"
    return UserError("--out", out, rule, "make room, mend it or name another, then run the same command again")


class Link(NamedTuple):
    """Steps that share an actor, not built yet."""

    name: str
    builders: list[Callable[[], Callable[[Any], Any]]]
    on_gpu: bool = False

    def build(self) -> list[Callable[[Any], Any]]:
        """The steps, built."""
        return [build() for build in self.builders]


def run_steps(steps: list[Callable[[Any], Any]], value: Any) -> Any:
    """`value` through all steps."""
    for step in steps:
        value = step(value)
    return value


class LinkActor:
    """One link inside a Ray actor. Ray Data's rows are dicts: `{"item": shard number, shard, totals or exception}`.

    An exception travels as a value to the driver, which raises it: Ray would retry the actor, log pages, and hide
    what happened under layers of its own. The exception of a link is passed on by those behind it.
    """

    def __init__(self, link: Link) -> None:
        self.run: Callable[[Any], Any]
        try:
            steps = link.build()
            self.run = lambda item: run_steps(steps, item)
        except Exception as error:
            failure = portable(error)
            self.run = lambda _: failure

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row in, one row out."""
        if isinstance(row["item"], Exception):
            return row
        try:
            return {"item": self.run(row["item"])}
        except Exception as error:
            return {"item": portable(error)}


def portable(error: Exception) -> Exception:
    """`error` as it can be sent to another process, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        sent = copy.copy(error)  # made anew from its arguments, as unpickling does; not every exception can be
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent
