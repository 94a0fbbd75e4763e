"""Print the comparison of models with their authors' code, for `pad models check` with `parity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.table import Column

from pad_pipeline.console import Table, console, note, say
from pad_pipeline.workflows.commands.common import plain
from pad_pipeline.workflows.commands.reword import reword
from pad_pipeline.workflows.models.parity.check import Result, about, compare
from pad_pipeline.workflows.models.parity.given import Given
from pad_pipeline.workflows.models.settings import ModelSettings

COLORS = {"equal": "green", "differs": "red", "not compared": "yellow"}
INCOMPLETE = 3
"""The exit code if nothing differs, and not all could be compared."""


def check_parity(
    context: typer.Context, models: ModelSettings, image: Path | None, given: Given, quiet: bool
) -> tuple[dict[str, Any], int]:
    """Compare all models, and print a table and the lines for an issue unless `quiet`. Return all numbers and the exit
    code."""
    note("comparing with the authors' code, on the CPU in float32; large models take minutes")
    results = [_reworded(result, context) for result in compare(models, image, given)]
    answers = {result.answer for result in results}
    code = 1 if "differs" in answers else INCOMPLETE if "not compared" in answers else 0
    here = about(image)
    if not quiet:
        _print_table(results)
        _print_report(results, here)
    made = [result._asdict() | {"measures": [one._asdict() for one in result.measures]} for result in results]
    return {"about": here, "models": made}, code


def _reworded(result: Result, context: typer.Context) -> Result:
    return result._replace(why=reword(result.why, context), remedy=reword(result.remedy, context))


def _print_table(results: list[Result]) -> None:
    numbers = [Column(name, justify="right") for name in ("difference", "tolerance")]
    table = Table("model", "compared", *numbers, Column("result", no_wrap=True), title="pad and upstream")
    for result in results:
        names = [plain(result.section), plain(f"  {result.upstream}" if result.measures else "")]
        for measure in result.measures:
            state = "equal" if measure.equal else "differs"
            shown = f"{measure.difference:.2g}", f"{measure.tolerance:g}"
            table.add_row(names.pop(0) if names else "", plain(measure.what), *shown, f"[{COLORS[state]}]{state}")
        if result.answer == "not compared":
            table.add_row(names[0], "", "", "", f"[{COLORS[result.answer]}]{result.answer}")
        table.add_section()
    console.print(table)
    for result in results:
        if result.why:
            say(f"{result.section} was not compared: {result.why}{'; ' * bool(result.remedy)}{result.remedy}", "yellow")


def _print_report(results: list[Result], here: dict[str, str]) -> None:
    """Print all numbers as plain text."""
    say("\nFor an issue, copy from here:\n")
    say(", ".join(f"{name} {value}" for name, value in here.items()))
    for result in results:
        say(f"{result.section}: {result.answer}; {result.model}; upstream {result.upstream or 'none'} {result.page}")
        if result.why:
            say(f"  {result.why}; {result.remedy}")
        for what, numbers, difference, tolerance in result.measures:
            say(f"  {what}: {numbers} numbers, largest difference {difference:.3g}, tolerance {tolerance:g}")
        for name, value in result.facts.items():
            say(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
