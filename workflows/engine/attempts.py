"""A shard that kills the process that works on it: tried again, then searched by halves for the image that does it."""

from __future__ import annotations

from pydantic import BaseModel

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.chain import Task

TRIES = 3
"""Deaths over a whole shard before it is searched, and of a single image before it is set aside. A process may die for
reasons of its own; the same image three times in a row, alone, is the reason."""


class Attempts(BaseModel):
    """What is known about one shard. `task()` says what to try next; then comes `survived()` or `died()`."""

    number: int
    rows: int
    """How many the shard has."""
    retry: bool = False
    deaths: int = 0
    """Over what is being tried."""
    parts: list[tuple[int, int]] = []
    """Still to be tried, the next one last; empty: the whole shard."""
    killers: list[tuple[int, str]] = []
    """Rows that kill, with the stage."""
    searches: int = 0
    known: int = 0
    """Killers that were known before the last search."""
    stage: str = ""
    """In hand, when a single image is tried."""

    def task(self) -> Task:
        """What to try now."""
        return Task(self.number, self.retry, self.parts[-1] if self.parts else None, tuple(self.killers))

    @property
    def alone(self) -> bool:
        """Whether a single image is tried."""
        return bool(self.parts) and self.parts[-1][1] - self.parts[-1][0] == 1

    @property
    def sound(self) -> bool:
        """Whether what a file says about it can be true."""
        edges = [*self.parts, *((row, row + 1) for row, _ in self.killers)]
        return all(0 <= first < last <= self.rows for first, last in edges)

    def survived(self) -> bool:
        """The task came through; whether that was the whole shard."""
        self.deaths = 0
        if not self.parts:
            return True
        self.parts.pop()
        return False

    def died(self, stage: str = "") -> None:
        """The process died over the task.

        Args:
            stage: in which it did, where that is known.

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
            self.searches, self.deaths = self.searches + 1, 0
            self.known = len(self.killers)
            self.parts = _halves(0, self.rows)
        elif not self.alone:
            first, last = self.parts.pop()
            self.parts += _halves(first, last)
            self.deaths = 0
        elif self.deaths >= TRIES:
            row = self.parts.pop()[0]
            if row not in dict(self.killers):
                self.killers.append((row, stage or self.stage or "unknown"))
            self.deaths = 0


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(middle, last), (first, middle)] if last - first > 1 else [(first, last)]
