"""Try a shard that kills its process again, then search it by halves for the image that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.chain import Task

TRIES = 3
"""Deaths over a whole shard before it is searched, and over a single image before it is marked as failed. A process may
die for other reasons; an image over which it dies three times in a row, alone, is the reason."""


@dataclass
class Attempts:
    """The state of one shard. `task()` returns what to try next; then call `survived()` or `died()`."""

    number: int
    rows: int
    """The number of images in the shard."""
    retry: bool = False
    deaths: int = 0
    """Deaths over the rows that are being tried."""
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Rows still to be tried, the next ones last; empty: the whole shard."""
    killers: list[tuple[int, str]] = field(default_factory=list)
    """Rows that kill, each with the stage in which it does."""
    searches: int = 0
    known: int = 0
    """Killers that were known before the last search."""

    def task(self) -> Task:
        """Return what to try next."""
        return Task(self.number, self.retry, self.parts[-1] if self.parts else None, tuple(self.killers))

    @property
    def alone(self) -> bool:
        """Whether a single image is being tried."""
        return bool(self.parts) and self.parts[-1][1] - self.parts[-1][0] == 1

    def survived(self) -> bool:
        """Record that the process survived the task, and return whether that was the whole shard."""
        self.deaths = 0
        if not self.parts:
            return True
        self.parts.pop()
        return False

    def died(self, stage: str = "") -> None:
        """Record that the process died over the task, in `stage` if that is known.

        Raises:
            UserError: the shard kills, and none of its images does so alone.
        """
        self.deaths += 1
        if not self.parts:
            if self.deaths < TRIES:
                return
            if self.searches and len(self.killers) == self.known:
                rule = "each process that works on it dies, and with none of its images alone"
                remedy = "give the workers more memory, or lower a batch_size, then run the same command again"
                raise UserError("shard", shard_name(self.number), rule, remedy)
            self.searches, self.known, self.deaths = self.searches + 1, len(self.killers), 0
            self.parts = _halves(0, self.rows)
        elif not self.alone:
            first, last = self.parts.pop()
            self.parts += _halves(first, last)
            self.deaths = 0
        elif self.deaths >= TRIES:
            row = self.parts.pop()[0]
            if row not in dict(self.killers):
                self.killers.append((row, stage or "unknown"))
            self.deaths = 0


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(middle, last), (first, middle)] if last - first > 1 else [(first, last)]


Begin = Callable[[int], Attempts]
"""Makes the attempts at a shard from its number."""
