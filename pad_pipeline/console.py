"""Print results on standard output, and everything else on standard error. Only a terminal gets colors."""

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
"""Progress, notes, warnings and errors. A quiet `pad` prints only the error that ends a command."""


def say(text: str | Text, style: str | None = None, to: Console = console) -> None:
    """Print a line unchanged: without markup, colored numbers and wrapping."""
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def note(text: str | Text, style: str | None = None) -> None:
    """Print a line unchanged on standard error."""
    say(text, style, errors)


@contextmanager
def progress(what: str, total: int | None, note: str = "", shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the block runs, if standard error is a terminal.

    Args:
        what: the text before the bar.
        total: the number of steps; None if it is not known yet.
        note: the text behind the bar, such as `images`.
        shown: whether to show the bar at all.

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
