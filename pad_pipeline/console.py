"""Print results on standard output, and everything else on standard error. Colors appear only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from pad_pipeline.errors import printable

PROGRESS_SECONDS = 60.0
"""Seconds between two lines of progress when standard error is not a terminal."""
FIRST_SECONDS = 10.0
"""Seconds until the first of these lines."""
_Step = TypeVar("_Step")
_CUT = "\N{HORIZONTAL ELLIPSIS}"
"""What rich writes where a cell is too narrow for its text."""

console = Console()
errors = Console(stderr=True)
"""The console for progress, notes, warnings and errors. A quiet `pad` prints only the error that ends a command."""


def say(text: str | Text, style: str | None = None, to: Console = console) -> None:
    """Print a line as it is: without markup, colored numbers and wrapping."""
    to.print(
        printable(text) if isinstance(text, str) else text, style=style, markup=False, highlight=False, soft_wrap=True
    )


def note(text: str | Text, style: str | None = None) -> None:
    """Print a line as it is on standard error, with the options of the running command in place of parameters."""
    say(reworded(text) if isinstance(text, str) else text, style, errors)


def reworded(text: str) -> str:
    """Return a text with the options of the running command in place of parameters."""
    return _reword[-1](text)


_reword: list[Callable[[str], str]] = [lambda text: text]


@contextmanager
def reworded_notes(reword: Callable[[str], str]) -> Iterator[None]:
    """Change the notes of the block by `reword`."""
    _reword.append(reword)
    try:
        yield
    finally:
        _reword.pop()


@contextmanager
def progress(what: str, total: int | None, note: str = "", shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the block runs; print a line each minute instead if standard error is not a terminal.

    Args:
        what: the text before the bar.
        total: the number of steps; None if it is not known yet.
        note: the text after the bar, such as `images`.
        shown: False shows nothing.

    Yields:
        A function that updates the bar; its keyword arguments are `completed`, `total` and `note`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
    with Progress(*texts, TimeRemainingColumn(), console=errors, disable=not (shown and errors.is_terminal)) as bar:
        task = bar.add_task(what, total=total, note=note)
        printed = time.monotonic() - PROGRESS_SECONDS + min(FIRST_SECONDS, PROGRESS_SECONDS)

        def update(**changes: Any) -> None:
            nonlocal printed
            bar.update(task, **changes)
            if shown and not errors.is_terminal and time.monotonic() - printed >= PROGRESS_SECONDS:
                printed = time.monotonic()
                now = bar.tasks[0]
                left = f", {now.time_remaining:.0f} s left" if now.time_remaining is not None else ""
                say(f"{what}: {now.completed:g} of {now.total or 0:g} {now.fields['note']}{left}", to=errors)

        yield update


def track(steps: Iterable[_Step], what: str, total: int) -> Iterator[_Step]:
    """Yield the steps, with a progress bar that counts them."""
    with progress(what, total) as update:
        began = time.monotonic()
        for done, step in enumerate(steps, 1):
            yield step
            update(completed=done, note=f"{done / max(time.monotonic() - began, 1e-9):.3g}/s")


class Table(RichTable):
    """A table of rich, which prints each row as a paragraph if the terminal is too narrow: rich would cut the cells.

    A paragraph has the row's first cell as its heading, then the title and the cell of each other column.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the table."""

        def text(cell: RenderableType) -> Text:
            found = console.render_str(cell) if isinstance(cell, str) else cell
            return found.copy() if isinstance(found, Text) else Text(str(found))

        drawn = [*super().__rich_console__(console, options)]
        cells = [text(cell).plain for column in self.columns for cell in (column.header, *column.cells)]
        shown = "".join(segment.text for segment in drawn if isinstance(segment, Segment))
        if shown.count(_CUT) <= "".join([str(self.title or ""), *cells]).count(_CUT):
            yield from drawn
            return
        if self.title:
            yield text(self.title)
        titles = [text(column.header) for column in self.columns[1:]]
        for first, *others in zip(*(column.cells for column in self.columns), strict=True):
            heading = text(first)
            heading.stylize("bold")
            yield heading
            pairs = zip(titles, map(text, others), strict=True)
            if facts := [Text.assemble(title, " ", cell) for title, cell in pairs if cell]:
                yield Padding(Text(", ").join(facts), (0, 0, 0, 2))
