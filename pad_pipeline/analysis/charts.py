"""Draws the results of an analysis or an experiment as charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.analysis.study import Chart

BLUE, GREY = "#3465a4", "#b8bcc2"
"""The colors of results and of values for comparison. Their brightness differs too, for color-blind readers."""


def draw_charts(results: Mapping[str, Any], out: Path) -> None:
    """Draw a chart for each study in the results of `pad analyze`. The files are `out/<study>.png`."""
    for name, study in STUDIES.items():
        if name in results:
            _draw(study.chart(results[name]), out / f"{name}.png")


def draw_grid(cells: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the results of an experiment: a chart for each measure, with a bar for a cell's mean and dots for its seeds.

    `cells` maps each cell to its measures, and these to its seeds' values. Values that are not finite are left out.
    """
    columns = list(next(iter(cells.values())))
    figure = Figure(figsize=(7, 1 + 0.45 * len(cells) * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns, strict=True):
        values = [[value for value in cells[cell][column] if math.isfinite(value)] for cell in cells]
        means = [sum(seeds) / len(seeds) if seeds else 0.0 for seeds in values]
        axes.barh(list(cells), means, color=GREY)
        for position, seeds in enumerate(values):
            axes.plot(seeds, [position] * len(seeds), "o", color=BLUE, markersize=4)
        axes.set_title(column.replace(".", " ").replace("_", " "), fontsize=10, loc="left")
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def _draw(chart: Chart, path: Path) -> None:
    if isinstance(chart.values, Mapping):
        known = {name: value for name, value in chart.values.items() if value is not None and math.isfinite(value)}
        figure = Figure(figsize=(6.4, 0.8 + 0.4 * max(len(known), 1)), layout="constrained")
        axes = figure.subplots()
        colors = [GREY if any(word in name for word in chart.plain) else BLUE for name in known]
        bars = axes.barh(list(known), list(known.values()), color=colors)
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
        axes.margins(x=0.15)
        axes.invert_yaxis()
    else:
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(len(chart.values)), chart.values, "o-", color=BLUE)
        axes.set(xlabel=chart.steps, ylim=(0, 1.05), xticks=range(len(chart.values)))
    axes.set_title(chart.title, fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
