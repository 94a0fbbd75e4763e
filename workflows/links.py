"""What runs in one actor: a few steps in a row. Kept apart, so that an actor imports only what its own steps need."""

from __future__ import annotations

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

    def build(self) -> Callable[[Any], Any]:
        """The steps as one callable."""
        steps = [build() for build in self.builders]

        def run(value: Any) -> Any:
            for step in steps:
                value = step(value)
            return value

        return run


class LinkActor:
    """One link inside a Ray actor. Ray Data's rows are dicts: `{"item": shard number, shard or totals}`."""

    def __init__(self, link: Link) -> None:
        self.run = link.build()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row in, one row out."""
        return {"item": self.run(row["item"])}
