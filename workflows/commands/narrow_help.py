"""The help of commands on a narrow terminal: a list without boxes, which would cut options and words."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any

from rich.console import Console

BOXES_FROM = 80
"""Columns of a terminal from which on help has boxes."""
LEAST = 20
"""Fewest columns for which help is written."""
INDENT = 6
"""Columns before the help of an option, which begins on a line of its own."""


class NarrowHelp:
    """A part of a command or of a group of commands, which prints its help for the width of the terminal."""

    rich_markup_mode: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: with boxes by rich, or as a plain list if the terminal is narrow."""
        markup, columns = self.rich_markup_mode, Console().width
        if columns < BOXES_FROM:
            self.rich_markup_mode = None
            formatter.width = max(columns, LEAST) - 1
            formatter.write_dl = partial(formatter.write_dl, col_max=INDENT)
            formatter.write_text = partial(_write_text, formatter)
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]  # typer's classes have it
        finally:
            self.rich_markup_mode = markup

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence of the help, whole, for the list of commands."""
        return str(super().get_short_help_str(1000))  # type: ignore[misc]


def _write_text(formatter: Any, text: str) -> None:
    """Write paragraphs, whose words are not broken. The further lines of an example are indented."""
    for number, paragraph in enumerate(text.split("\n\n")):
        example = paragraph.startswith(" ")
        indent = " " * formatter.current_indent + ("  " if example else "")
        wrapped = textwrap.fill(
            " ".join(paragraph.split()), formatter.width, initial_indent=indent,
            subsequent_indent=indent + ("    " if example else ""), break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        formatter.write(("\n" if number else "") + wrapped + "\n")
