"""What the commands share: options that several have, and what is said in the same words. Imports nothing heavy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pad_pipeline.console import errors, note, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.options import Given, Options, options
from pad_pipeline.workflows.engine.choices import EngineName
from pad_pipeline.workflows.results import finite

if TYPE_CHECKING:
    from pad_pipeline.workflows.runs.options import RunOptions

INPUT, MODELS, VIEW, RUN, CLUSTER = "Input", "Models", "View", "Run", "Cluster"
"""Panels of `--help`."""


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    """An option of a panel."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


def _engine() -> Options:
    from pad_pipeline.workflows.runs.options import RunOptions

    return options(RunOptions, None, "engine")


EngineOption = Annotated[EngineName, _engine]
Models = Annotated[
    str,
    option(MODELS, "`paper` (RAM), `plus` (RAM++), `miniature` (ships with pad; drawn scenes only), or a TOML file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: the result as JSON on standard output.")]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


def print_json(value: Any) -> None:
    """A result for programs; what no JSON can hold (NaN) as null."""
    typer.echo(json.dumps(finite(value), indent=1, default=str))


def counted(number: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def escaped(text: str) -> str:
    """Text of unknown origin inside markup."""
    from rich.markup import escape

    return escape(plain(text).plain)


def plain(text: str) -> Any:
    """Text of unknown origin, shown as it is: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def preload(options: RunOptions) -> None:
    """Start the child process of an isolated run early: it imports what it needs while this process plans. A run for
    which this was not called does the same, and begins later."""
    if options.engine == "local" and options.isolated:
        from pad_pipeline.workflows.engine.child import Child

        Child.preload("pad_pipeline.workflows.runs.chains")


def finish(totals: dict[str, int], run: Given, counts: dict[str, int], source: str = "images") -> None:
    """Say what came out; exit code 1 where more images failed than may.

    Raises:
        UserError: all of them failed; not asked where `source`, the parameter that named them, is empty.
    """
    from pad_pipeline.workflows.runs.options import failures_allowed

    out, as_json, max_failed = run.get("fork") or run["out"], run["as_json"], run["max_failed"]
    if as_json:
        print_json({"out": out, **totals, "left_out": counts})
    for what, number in () if as_json else counts.items():
        say(plain(f"{number} {what}"))
    say_total = note if as_json else say
    say_total(
        f"{counted(totals['images'], 'image')} in {out}: {totals['ok']} ok, {totals['empty']} empty, "
        f"{totals['failed']} failed; {counted(totals['regions'], 'region')}."
    )
    if totals["failed"]:
        say_total(f"`pad stats {out}` says why images failed.")
    if source and totals["failed"] == totals["images"]:
        raise UserError(source, counted(totals["images"], "image"), "every one of them failed", f"see pad stats {out}")
    allowed = failures_allowed(max_failed, totals["images"])
    if totals["failed"] > allowed:
        failed = f"{totals['failed']} of {counted(totals['images'], 'image')} failed"
        text = f"{failed}; --max-failed {max_failed} allows {allowed}. `pad stats {out}` says why."
        errors.quiet = False  # it is what ends the command
        note(text, "red")
        raise typer.Exit(1)
