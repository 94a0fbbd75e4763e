"""Retry a shard whose worker process died, and find the images that kill the process by bisection."""

from __future__ import annotations

from dataclasses import dataclass, field

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.chain import Task

TRIES = 3
"""Number of deaths after which a whole shard is searched, or a single image is marked as failed. One death can have
another reason, such as the OOM killer. Three deaths in a row over a single image show that the image is the reason."""


@dataclass
class Attempts:
    """The attempts at one shard. A caller carries out `task()`, calls `survived()` or `died()`, and repeats this."""

    number: int
    """Number of the shard."""
    rows: int
    """Number of images in the shard."""
    retry: bool = False
    """See `Task.retry`."""
    deaths: int = 0
    """Number of deaths over the present task."""
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of rows that are not tried yet, the next one last. If it is empty, the whole shard is the next task."""
    killers: list[tuple[int, str]] = field(default_factory=list)
    """Rows that kill the process, each with the stage in which the process died."""
    searches: int = 0
    """Number of searches that were begun."""
    known: int = 0
    """Number of killers that were known before the last search."""

    def task(self) -> Task:
        """Return the task to try next."""
        return Task(self.number, self.retry, self.parts[-1] if self.parts else None, tuple(self.killers))

    @property
    def alone(self) -> bool:
        """Whether the next task is a single image."""
        return bool(self.parts) and self.parts[-1][1] - self.parts[-1][0] == 1

    def survived(self) -> bool:
        """Record that the process survived the task. Return whether the task was the whole shard."""
        self.deaths = 0
        if not self.parts:
            return True
        self.parts.pop()
        return False

    def died(self, stage: str = "") -> None:
        """Record that the process died over the task, in `stage` if it is known.

        Raises:
            UserError: the shard kills the process, but none of its images does so alone.
        """
        self.deaths += 1
        if self.deaths < TRIES and (self.alone or not self.parts):
            return
        self.deaths = 0
        if not self.parts:
            if self.searches and len(self.killers) == self.known:
                rule = "each process that works on it dies, and with none of its images alone"
                remedy = "give the workers more memory, or lower a batch_size, then run the same command again"
                raise UserError("shard", shard_name(self.number), rule, remedy)
            self.searches, self.known = self.searches + 1, len(self.killers)
            self.parts = _halves(0, self.rows)
            return
        first, last = self.parts.pop()
        if last - first > 1:
            self.parts += _halves(first, last)
        elif first not in dict(self.killers):
            self.killers.append((first, stage or "unknown"))


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(middle, last), (first, middle)] if last - first > 1 else [(first, last)]
