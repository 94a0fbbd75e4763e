"""The help of commands on a narrow terminal: a list without boxes, which would cut options and words."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

BOXES_FROM = 80
"""Columns of a terminal from which on help has boxes."""
INDENT = 6
"""Columns before the help of an option, which begins on a line of its own."""


class NarrowHelp:
    """A part of a command or of a group of commands, which prints its help for the width of the terminal."""

    rich_markup_mode: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: with boxes by rich, or as a plain list if the terminal is narrow."""
        if (columns := shutil.get_terminal_size().columns) < BOXES_FROM:
            self.rich_markup_mode = None
            formatter.width = columns - 1
            formatter.write_dl = partial(formatter.write_dl, col_max=INDENT)
        super().format_help(ctx, formatter)  # type: ignore[misc]  # typer's classes have it

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence of the help, whole, for the list of commands."""
        return str(super().get_short_help_str(1000))  # type: ignore[misc]
