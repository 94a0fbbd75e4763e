"""The one call that every engine has: it moves shards through a chain."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from pad_pipeline.workflows.engine.attempts import Begin
from pad_pipeline.workflows.engine.chain import Done, Link
from pad_pipeline.workflows.engine.progress import Watch


class Engine(Protocol):
    """Moves shards through a chain, on one machine or on many."""

    def run(self, chain: list[Link], numbers: Iterable[int], begin: Begin, watch: Watch) -> Generator[Done, None, None]:
        """Work on shards, and yield the result of each after it is committed. Closing the generator stops the work.

        Args:
            chain: the links of the run.
            numbers: the numbers of the shards.
            begin: makes the attempts at a shard.
            watch: is shown the progress of the stages.

        Raises:
            UserError: a stage stops the run, a worker can't start, or a shard kills every process.
        """
        ...
