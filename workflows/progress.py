"""How far a run is: a live line on a terminal, one line a shard elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Totals = dict[str, int]


class RunProgress:
    """Shards done, what was found, images per second, time left; and inside a shard, which stage is at which image.

    Args:
        kind: what runs, for the start of the line.
        shards: how many there are to do.
        console: where to.
    """

    def __init__(self, kind: str, shards: int, console: Console) -> None:
        self.console, self.shards = console, shards
        self._bar = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TextColumn("shards"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left;"),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(kind, total=shards, note="loading the models")
        self._found: Counter[str] = Counter()

    def stage(self, name: str, done: int, rows: int) -> None:
        """Stage `name` has done `done` of the `rows` images of the shard in hand."""
        self._bar.update(self._task, note=f"{self._line()}; {name} {done} of {rows}")

    def follow(self, results: Iterable[Totals]) -> None:
        """Take the shards as they are committed, to the end."""
        with self._bar:
            for number, found in enumerate(results, 1):
                self._found.update(found)
                self._bar.update(self._task, completed=number, note=self._line())
                if not self.console.is_terminal:
                    line = f"{number} of {self.shards} shards: {self._line()}"
                    self.console.print(line, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        found = self._found
        rate = found["images"] / max(self._bar.tasks[0].elapsed or 1e-9, 1e-9)
        return f"{found['images']} images, {rate:.1f}/s, {found['regions']} regions, {found['failed']} failed"
