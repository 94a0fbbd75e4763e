"""`pad doctor`: check whether this machine is ready for a build or a training."""

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
from pad_pipeline.workflows.commands.reword import reword, reword_error

COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder or URL that a run will write into.")] = ".",
    models: Annotated[
        str, typer.Option(help="`paper`, `plus`, `best`, `miniature`, or a models file (TOML).")
    ] = "paper",
    address: Annotated[str, typer.Option(help="Ray cluster to check too, such as auto or HOST:PORT.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check whether this machine can run pad: versions, GPU, Ray, disk, network, model files; print remedies.

    Nothing is written or downloaded. The exit code is 1 if there is a problem, and 0 if there are only warnings.

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
    """Run all checks. The order matters to a reader: an early finding may explain a later one."""
    from pad_pipeline.workflows.checks import machine, network

    hub_problem = cache(network.hub_problem)
    checks: dict[str, Callable[[], Findings]] = {
        "packages": machine.packages,
        "gpu": machine.gpu,
        "ray": partial(network.ray_cluster, address),
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "out": lambda: iter([machine.disk_space("out", out, warn_below=machine.RUN_FREE)]),
        "hub": partial(network.hub, hub_problem),
        "models": partial(network.model_files, models, hub_problem),
        "optional": machine.optional_packages,
    }
    for name, check in checks.items():
        try:
            for finding in check():
                yield finding._replace(found=_line(finding.found), remedy=_line(reword(finding.remedy, context)))
        except UserError as error:
            reword_error(error, context)
            found = _line(f"{error.field} = {error.value}: {error.rule}")
            yield Finding(name, "problem", found, _line(error.remedy))
        except Exception as error:  # a broken package may raise anything; the other checks still run
            found = _line(f"it can't be checked ({type(error).__name__}: {str(error)[:200]})")
            yield Finding(name, "problem", found, "see whether a line above explains it; else install pad again")


def _line(text: str) -> str:
    """Return a library's text on one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
