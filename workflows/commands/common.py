"""Options, and functions that print, which several commands use."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from pad_pipeline.workflows.commands.options import option, setting
from pad_pipeline.workflows.results import finite
from pad_pipeline.workflows.runs.options import EngineName, RunOptions

INPUT, MODELS, VIEW, RUN, CLUSTER = "Input", "Models", "View", "Run", "Cluster"
"""Titles of the boxes in which `--help` lists options."""

FROM_FIRST = "counted from the first; all by default"
"""End of the help of an option that limits a number."""
EngineOption = Annotated[EngineName, setting(RunOptions, None, "engine")]
Models = Annotated[
    str,
    option(
        MODELS, "`paper` (RAM), `plus` (RAM++), `best`, `miniature` (part of pad, for drawn scenes), or a TOML file."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on standard output.")]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


def print_json(value: Any) -> None:
    """Print a result as JSON, with null in place of NaN and infinity."""
    typer.echo(json.dumps(finite(value), indent=1, default=str))


def counted(number: int, what: str) -> str:
    """Return a number and its noun, such as `1 image` or `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def escaped(text: str) -> str:
    """Return text of unknown origin for use in rich's markup, which it can't change."""
    return escape(plain(text).plain)


def plain(text: str) -> Text:
    """Return text of unknown origin that rich prints without markup and without control characters."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))
