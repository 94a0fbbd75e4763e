"""What people read: results on standard output, everything else on standard error. Color only where a terminal is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.text import Text

_Step = TypeVar("_Step")

console = Console()
errors = Console(stderr=True)
"""Progress, notes and warnings; a quiet `pad` prints none of it, but for the error that ends a command."""


def say(text: str | Text, style: str | None = None, to: Console = console) -> None:
    """Print a line as it is: nothing in it is markup, no number is colored, and it is not wrapped."""
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def note(text: str | Text, style: str | None = None) -> None:
    """Print a line as it is on standard error."""
    say(text, style, errors)


@contextmanager
def progress(what: str, total: int | None, note: str = "", shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the block runs, where standard error is a terminal.

    Args:
        what: stands before the bar.
        total: steps; None where they are not known yet.
        note: stands behind the bar, `images` say.
        shown: whether to show it at all.

    Yields:
        A function that changes the bar: it takes `completed`, `total` and `note` by name.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
    with Progress(*texts, TimeRemainingColumn(), console=errors, disable=not (shown and errors.is_terminal)) as bar:
        yield partial(bar.update, bar.add_task(what, total=total, note=note))


def track(steps: Iterable[_Step], what: str, total: int) -> Iterator[_Step]:
    """Yield the steps, and show with a progress bar how many were taken."""
    with progress(what, total) as update:
        for done, step in enumerate(steps, 1):
            yield step
            update(completed=done)
