"""`pad doctor`: what this machine lacks for a build or a training, each with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.text import Text

from pad_pipeline.console import console, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.checks.finding import Finding, Findings
from pad_pipeline.workflows.commands.common import AsJson, counted, print_json
from pad_pipeline.workflows.commands.named import in_options, name_options

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder or URL that a run is to write into.")] = ".",
    models: Annotated[str, typer.Option(help="`paper`, `plus`, `miniature`, or a TOML file.")] = "paper",
    address: Annotated[str, typer.Option(help="Ray cluster to look for too, such as auto or HOST:PORT.")] = "",
    as_json: AsJson = False,
) -> None:
    """Look at this machine before a run does: versions, GPU, Ray, disk, hub, models in the caches; with remedies.

    Nothing is written or downloaded. Exit code 1 where there is a problem; a warning is none.

    Examples:

      pad doctor

      pad doctor --models plus --out s3://bucket/shards --address auto --json
    """
    found, problems = [], 0
    for finding in checkup(out, models, address, context):
        found.append(finding._asdict())
        problems += finding.state == "problem"
        if not as_json:
            state = Text(f"{finding.state:8}", COLOURS[finding.state])
            say(state.append(f"{finding.check:18} {finding.found}", ""))
            if finding.remedy:
                say(f"{'':27}{finding.remedy}", "dim")
    if as_json:
        print_json({"problems": problems, "checks": found})
    elif problems:
        console.print(f"{counted(problems, 'problem')}.", style="red")
    if problems:
        raise typer.Exit(1)


def checkup(out: str, models: str, address: str, context: typer.Context) -> Findings:
    """Every check, in an order in which one thing explains the next.

    Args:
        out: folder or URL that a run is to write into.
        models: as of a build.
        address: of a Ray cluster; empty looks for none.
        context: of the running command, whose options remedies name.
    """
    from pad_pipeline.workflows.checks import machine, reach

    hub = reach.Hub()
    checks: dict[str, Callable[[], Findings]] = {
        "packages": machine.packages,
        "gpu": machine.gpu,
        "ray": partial(reach.ray_here, address),
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "out": partial(machine.room, "out", out, ample=machine.AMPLE),
        "hub": hub.finding,
        "models": partial(reach.model_files, models, hub),
        "optional": machine.optional,
    }
    for name, check in checks.items():
        try:
            for finding in check():
                yield finding._replace(remedy=in_options(finding.remedy, context)).on_lines()
        except UserError as error:
            name_options(error, context)
            yield Finding(name, "problem", f"{error.field} = {error.value}: {error.rule}", error.remedy).on_lines()
        except Exception as error:  # a broken package raises anything, and what comes after it should still be told
            said = f"it can't be looked at ({type(error).__name__}: {str(error)[:200]})"
            yield Finding(
                name, "problem", said, "see whether a line above explains it; else install pad anew"
            ).on_lines()
