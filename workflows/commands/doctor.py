"""`pad doctor`: what this machine lacks for a build or a training, with remedies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Annotated

import typer
from rich.text import Text

from pad_pipeline.console import console, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.checks import Finding, Findings
from pad_pipeline.workflows.commands.common import AsJson, counted, print_json
from pad_pipeline.workflows.commands.named import in_options, name_options

COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder or URL that a run is to write into.")] = ".",
    models: Annotated[str, typer.Option(help="`paper`, `plus`, `miniature`, or a TOML file.")] = "paper",
    address: Annotated[
        str, typer.Option(help="Address of a Ray cluster to check too, such as auto or HOST:PORT.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check this machine for a run: versions, GPU, Ray, disk, hub, models in the caches; say what to do.

    Nothing is written or downloaded. The exit code is 1 if there is a problem; a warning is no problem.

    Examples:

      pad doctor

      pad doctor --models plus --out s3://bucket/shards --address auto --json
    """
    found = []
    for finding in checkup(out, models, address, context):
        found.append(finding._asdict())
        if not as_json:
            state = Text(f"{finding.state:8}", COLORS[finding.state])
            say(state.append(f"{finding.check:18} {finding.found}", ""))
            if finding.remedy:
                say(f"{'':27}{finding.remedy}", "dim")
    problems = sum(finding["state"] == "problem" for finding in found)
    if as_json:
        print_json({"problems": problems, "checks": found})
    elif problems:
        console.print(f"{counted(problems, 'problem')}.", style="red")
    if problems:
        raise typer.Exit(1)


def checkup(out: str, models: str, address: str, context: typer.Context) -> Findings:
    """Yield the findings of all checks; an early finding may explain a later one."""
    from pad_pipeline.workflows.checks import machine, reach

    hub_problem = cache(reach.hub_problem)
    checks: dict[str, Callable[[], Findings]] = {
        "packages": machine.packages,
        "gpu": machine.gpu,
        "ray": partial(reach.ray_here, address),
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "out": lambda: iter([machine.room("out", out, ample=machine.AMPLE)]),
        "hub": partial(reach.hub, hub_problem),
        "models": partial(reach.model_files, models, hub_problem),
        "optional": machine.optional,
    }
    for name, check in checks.items():
        for finding in _findings(name, check, context):
            yield finding._replace(found=_line(finding.found), remedy=_line(in_options(finding.remedy, context)))


def _findings(name: str, check: Callable[[], Findings], context: typer.Context) -> Findings:
    try:
        yield from check()
    except UserError as error:
        name_options(error, context)
        yield Finding(name, "problem", f"{error.field} = {error.value}: {error.rule}", error.remedy)
    except Exception as error:  # a broken package raises anything, and must not hide the checks after it
        problem = f"it can't be checked ({type(error).__name__}: {str(error)[:200]})"
        yield Finding(name, "problem", problem, "see whether a line above explains it; else install pad again")


def _line(text: str) -> str:
    """Return a text without line breaks and control characters, which texts of libraries may contain."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
