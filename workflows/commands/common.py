"""Options, and functions that print, which several commands use."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from pad_pipeline.storage import is_url, resolved
from pad_pipeline.threads import OverShards
from pad_pipeline.workflows.commands.options import OptionValues, option, options, setting
from pad_pipeline.workflows.engine.over_shards import ReadOptions, over_shards
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
        MODELS,
        "`paper` (RAM), `plus` (RAM++), `best`, `miniature` (part of pad, for drawn scenes), or a models file (TOML).",
    ),
]
READ_OPTIONS = options(ReadOptions, CLUSTER, "engine address workers wait")
"""The options of commands that read many shards."""
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on standard output.")]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


def seen_by_workers(shards: str, read: OptionValues) -> str:
    """Return the folder or URL of shards as Ray's workers see it, which run in folders of their own."""
    return resolved(shards) if read["engine"] == "ray" else shards


def reading(shards: str, read: OptionValues, count: int) -> OverShards | None:
    """Return how a command reads `count` shards of a folder or URL, by its `READ_OPTIONS`."""
    return over_shards(ReadOptions(**read), count, is_url(shards))


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
