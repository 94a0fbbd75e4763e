"""The results of an experiment as one table: the numbers of each cell over its seeds, and how far cells are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from rich.table import Table

from pad_pipeline.errors import UserError

_NOTHING = object()


class Grid(NamedTuple):
    """What came of an experiment."""

    cells: dict[str, dict[str, list[float]]]
    """By cell and column a number for each seed; NaN where there is none."""
    failed: dict[str, str]
    """What went wrong, by `CELL, seed SEED`."""
    differences: dict[str, dict[str, list[float]]]
    """By cell and column the number less that of the baseline with the same seed; empty without a baseline."""


def grid_of(
    results: dict[str, list[dict[str, Any]]], columns: list[str], failed: dict[str, str], baseline: str
) -> Grid:
    """Pick the columns out of results.

    Args:
        results: of each cell, one for each seed; empty where there is none.
        columns: places in a result, such as `align.shuffled_labels`.
        failed: see `Grid`.
        baseline: the cell that the others are compared with, or "".

    Raises:
        UserError: no result has a column.
    """
    every = [result for cell in results.values() for result in cell]
    for column in columns:
        if all(not result or _entry(result, column) is _NOTHING for result in every):
            known = ", ".join(dict.fromkeys(name for result in every for name in _names(result)))
            rule = f"no result has that number; there are {known}"
            raise UserError("columns", column, rule, "correct it; what is trained is kept")
    cells = {
        cell: {column: [_at(result, column) for result in found] for column in columns}
        for cell, found in results.items()
    }
    # Within a seed: a spread that all cells share is no doubt about which is better.
    differences = {
        cell: {
            column: [mine - base for mine, base in zip(numbers[column], cells[baseline][column], strict=True)]
            for column in columns
        }
        for cell, numbers in cells.items()
        if baseline and cell != baseline
    }
    return Grid(cells, failed, differences)


def _entry(result: dict[str, Any], column: str) -> Any:
    """What stands at a place such as `align.shuffled_labels`."""
    value: Any = result
    for name in column.split("."):
        value = value.get(name, _NOTHING) if isinstance(value, dict) else _NOTHING
    return _NOTHING if isinstance(value, dict) else value


def _at(result: dict[str, Any], column: str) -> float:
    value = _entry(result, column)
    return float(value) if isinstance(value, int | float) else math.nan


def _names(result: dict[str, Any], before: str = "") -> Iterator[str]:
    """The places of all numbers of a result."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _names(value, f"{before}{name}.")
        elif not isinstance(value, list):
            yield before + name


def table(found: Grid) -> Table:
    """Mean and standard deviation over seeds: a row for each cell; with a baseline, a row for each number, and beside
    each other cell its difference."""
    columns = list(next(iter(found.cells.values())))
    if not found.differences:
        made = Table("cell", *map(_said, columns))
        for cell, numbers in found.cells.items():
            made.add_row(cell, *[_spread(numbers[column]) for column in columns])
        return made
    made = Table("number")
    for cell in found.cells:
        made.add_column(cell)
        if cell in found.differences:
            made.add_column("difference")
    for column in columns:
        row = [_said(column)]
        for cell, numbers in found.cells.items():
            row.append(_spread(numbers[column]))
            if cell in found.differences:
                row.append(_spread(found.differences[cell][column], "+"))
        made.add_row(*row)
    return made


def _said(column: str) -> str:
    return column.replace(".", " ").replace("_", " ")


def _spread(values: Sequence[float], sign: str = "") -> str:
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return f"{known[0]:{sign}.3f}" if known else "-"
    return f"{fmean(known):{sign}.3f} ± {stdev(known):.3f}"
