"""What every engine is: the one call that moves shards through a chain. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Done, Link
from pad_pipeline.workflows.engine.progress import Watch

Begin = Callable[[int], Attempts]
"""Makes the attempts at a shard from its number."""


class Engine(Protocol):
    """Moves shards through a chain, on one machine or on many."""

    def run(self, chain: list[Link], numbers: Iterable[int], begin: Begin, watch: Watch) -> Generator[Done, None, None]:
        """Work on shards, and yield what each came to once it is committed. Closing the generator stops the work.

        Args:
            chain: the links of the run.
            numbers: of the shards.
            begin: makes the attempts at a shard.
            watch: is shown how far the stages are.

        Raises:
            UserError: a stage stops the run, a worker can't start, or a shard kills every process.
        """
        ...
