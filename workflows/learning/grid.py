"""Collect the results of an experiment in one table: numbers of each cell, and differences between cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pad_pipeline.console import Table
from pad_pipeline.errors import UserError
from pad_pipeline.facts import flatten

MOST_SEEDS = 16
"""The highest number of seeds for which all choices of signs are counted; with more, there is no p value."""


class Grid(NamedTuple):
    """The results of an experiment."""

    cells: dict[str, dict[str, list[float]]]
    """The numbers by cell and column, one for each seed; NaN if it is missing."""
    failed: dict[str, str]
    """The errors of the trainings that failed, by `CELL, seed SEED`."""
    differences: dict[str, dict[str, list[float]]]
    """The numbers minus those of the baseline with the same seed, by cell and column; empty without a baseline."""
    p_values: dict[str, dict[str, float]]
    """The p value of each difference, see `sign_flip_p`, by cell and column; empty without a baseline."""


def collect_grid(
    results: dict[str, list[dict[str, Any]]], columns: list[str], failed: dict[str, str], baseline: str
) -> Grid:
    """Select `columns`, such as `align.shuffled_labels`, from the results, and compare cells with the cell `baseline`.

    `results` has for each cell one result per seed, empty if it is missing. With `baseline = ""`, nothing is compared.

    Raises:
        UserError: no result has a column.
    """
    found = {cell: [flatten(result) for result in of_cell] for cell, of_cell in results.items()}
    known = {name: value for of_cell in found.values() for result in of_cell for name, value in result.items()}
    for column in columns:
        if column not in known:
            names = ", ".join(name for name, value in known.items() if not isinstance(value, list))
            rule = f"no result has this number; there are {names}"
            raise UserError("columns", column, rule, "correct it; finished trainings are kept")
    cells = {
        cell: {column: [_number(result.get(column)) for result in of_cell] for column in columns}
        for cell, of_cell in found.items()
    }
    # Subtract cells with the same seed, so that variation between seeds that all cells share cancels out.
    differences = {
        cell: {
            column: [mine - base for mine, base in zip(numbers[column], cells[baseline][column], strict=True)]
            for column in columns
        }
        for cell, numbers in cells.items()
        if baseline and cell != baseline
    }
    p_values = {
        cell: {column: sign_flip_p(values) for column, values in of_cell.items()}
        for cell, of_cell in differences.items()
    }
    return Grid(cells, failed, differences, p_values)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the p value of a permutation test of paired differences, one for each seed; NaN without a difference.

    It is the share of all 2^n choices of signs with which the mean is at least as far from 0, on the side on which it
    is: the test has one side, and with 5 seeds the lowest p is 1/32 = 0.031. The test is exact: it only assumes that a
    difference would be as likely with the other sign, if the two cells were alike.
    """
    known = [value for value in differences if math.isfinite(value)]
    if not known or len(known) > MOST_SEEDS:
        return math.nan
    sums = [0.0]
    for value in known:
        sums = [one + signed for one in sums for signed in (value, -value)]
    total = abs(math.fsum(known))
    return sum(one >= total - 1e-12 * max(total, 1) for one in sums) / len(sums)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def table(found: Grid) -> Table:
    """Return a table of means and standard deviations over seeds; with a baseline, also of the differences, and the p
    values of `sign_flip_p`."""
    columns = {column: column.replace(".", " ").replace("_", " ") for column in next(iter(found.cells.values()))}
    if not found.differences:
        made = Table("cell", *columns.values())
        for cell, numbers in found.cells.items():
            made.add_row(cell, *[_spread(numbers[column]) for column in columns])
        return made
    made = Table("number")
    for cell in found.cells:
        made.add_column(cell)
        if cell in found.differences:
            made.add_column("difference")
            made.add_column("p")
    for column, title in columns.items():
        row = [title]
        for cell, numbers in found.cells.items():
            row.append(_spread(numbers[column]))
            if cell in found.differences:
                row.append(_spread(found.differences[cell][column], "+"))
                row.append(f"{found.p_values[cell][column]:.3f}")
        made.add_row(*row)
    return made


def _spread(values: Sequence[float], sign: str = "") -> str:
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return f"{known[0]:{sign}.3f}" if known else "-"
    return f"{fmean(known):{sign}.3f} ± {stdev(known):.3f}"
