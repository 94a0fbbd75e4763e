"""Draws the results of an analysis or an experiment as charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, GREY = "#3465a4", "#b8bcc2"
"""The colors of results and of what they are compared with. They also differ in brightness, for color-blind readers."""


def draw_charts(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw a chart for each study in a result.

    Args:
        found: the result of `pad analyze`, by the names of studies.
        out: the folder for the charts.

    Returns:
        The files that were written.
    """
    made = []
    if "entropy" in found:
        study = found["entropy"]
        bars = {
            f"{where} {name}": study[where].get(name)
            for where in ("image", "pooled")
            for name in ("before", "after", "text")
        }
        made.append(_bars(out / "entropy.png", bars, f"von Neumann entropy, {study['unit']}", plain=("before", "text")))
    if "align" in found:
        study = found["align"]
        names = ("align", "shuffled_labels", "shuffled_patches", "untrained_projector")
        made.append(
            _bars(out / "align.png", {name.replace("_", " "): study[name] for name in names}, "Align(V, W), mean IoU")
        )
    if "pursuit" in found:
        made.append(_curve(out / "pursuit.png", found["pursuit"]["residual"]))
    if "lens" in found:
        bars = {
            f"{lens} {name}": found["lens"][lens][name]
            for lens in ("embedding", "logit")
            for name in ("readable", "precision", "recall")
        }
        made.append(_bars(out / "lens.png", bars, "share of patches", plain=("readable",)))
    if "overlap" in found:
        study = found["overlap"]
        bars = {name.replace("_", " "): study.get(name) for name in ("patches", "images", "images_by_chance")}
        title = f"share of {study['k']} nearest neighbors kept"
        made.append(_bars(out / "overlap.png", bars, title, plain=("chance",)))
    return made


def draw_grid(cells: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the results of an experiment: a chart for each measure, with a bar for a cell's mean and dots for its seeds.

    Args:
        cells: for each cell and measure, the values of all seeds; values that are not finite are left out.
        path: the image file to write.
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


def _bars(path: Path, bars: Mapping[str, float | None], title: str, plain: Sequence[str] = ()) -> Path:
    known = {name: value for name, value in bars.items() if value is not None and math.isfinite(value)}
    figure = Figure(figsize=(6.4, 0.8 + 0.4 * max(len(known), 1)), layout="constrained")
    axes = figure.subplots()
    colors = [GREY if any(word in name for word in (*plain, "shuffled", "untrained")) else BLUE for name in known]
    drawn = axes.barh(list(known), list(known.values()), color=colors)
    axes.bar_label(drawn, fmt="%.3f", padding=3, fontsize=9)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    return path


def _curve(path: Path, residual: Sequence[float]) -> Path:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(residual)), residual, "o-", color=BLUE)
    axes.set(xlabel="words taken", ylim=(0, 1.05), xticks=range(len(residual)))
    axes.set_title("share of a vision token's energy that is left", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    return path
