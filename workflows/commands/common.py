"""What the commands share: options that several have, and what is said in the same words. Imports nothing heavy."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from pad_pipeline.console import console, errors
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.results import finite


class Engine(StrEnum):
    """Where the stages run."""

    ray = "ray"
    local = "local"


class Fit(StrEnum):
    """How an image is brought to the view's square."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


Out = Annotated[
    str,
    typer.Option(help="Folder or URL (s3://, gs://) to write into: new, empty, or an earlier run to continue."),
]
Models = Annotated[
    str,
    typer.Option(
        help="`paper` (RAM), `plus` (RAM++), `miniature` (ships with pad; drawn scenes only), or a TOML file."
    ),
]
EngineOption = Annotated[Engine, typer.Option(help="ray: Ray on this machine or a cluster. local: this process.")]
Threads = Annotated[int, typer.Option(help="CPU threads of each model; 0 for all cores.", min=0, max=1024)]
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


def supervise() -> None:
    """Before anything is loaded that would not survive a fork."""
    from pad_pipeline.workflows.engine import supervise

    supervise.supervised()


def finish(
    totals: dict[str, int], out: str, counts: dict[str, int], max_failed: str, as_json: bool, source: str = "images"
) -> None:
    """Say what came out; exit code 1 where more images failed than may.

    Raises:
        UserError: all of them failed; not asked where `source`, the parameter that named them, is empty.
    """
    from pad_pipeline.workflows.runs.options import failures_allowed

    if as_json:
        print_json({"out": out, **totals, "left_out": counts})
    for what, number in () if as_json else counts.items():
        console.print(plain(f"{number} {what}"), highlight=False)
    shown = errors if as_json else console
    shown.print(
        f"{counted(totals['images'], 'image')} in {out}: {totals['ok']} ok, {totals['empty']} empty, "
        f"{totals['failed']} failed; {counted(totals['regions'], 'region')}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if totals["failed"]:
        shown.print(f"`pad stats {out}` says why images failed.", markup=False, highlight=False, soft_wrap=True)
    if source and totals["failed"] == totals["images"]:
        raise UserError(source, counted(totals["images"], "image"), "every one of them failed", f"see pad stats {out}")
    allowed = failures_allowed(max_failed, totals["images"])
    if totals["failed"] > allowed:
        failed = f"{totals['failed']} of {counted(totals['images'], 'image')} failed"
        text = f"{failed}; --max-failed {max_failed} allows {allowed}. `pad stats {out}` says why."
        errors.quiet = False  # it is what ends the command
        errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
