"""Options and ways of printing that several commands share."""

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
"""Panels of `--help`."""

EngineOption = Annotated[EngineName, setting(RunOptions, None, "engine")]
Models = Annotated[
    str,
    option(MODELS, "`paper` (RAM), `plus` (RAM++), `miniature` (ships with pad; drawn scenes only), or a TOML file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, for programs.")]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


def print_json(value: Any) -> None:
    """Print a result for programs, with null in place of NaN and infinity."""
    typer.echo(json.dumps(finite(value), indent=1, default=str))


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as `1 image` or `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def escaped(text: str) -> str:
    """Return text of unknown origin for use inside markup."""
    return escape(plain(text).plain)


def plain(text: str) -> Text:
    """Return text of unknown origin that is printed as it is: no markup, no control characters."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))
