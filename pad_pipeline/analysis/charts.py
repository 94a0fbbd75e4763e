"""The numbers of an analysis as charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, GREY = "#3465a4", "#b8bcc2"
"""What was measured, and what it is to be held against: told apart without colors too."""


def draw_charts(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw a chart for each analysis in a result.

    Args:
        found: as `pad analyze` has it.
        out: the folder.

    Returns:
        The files.
    """
    made = []
    if "entropy" in found:
        one = found["entropy"]
        bars = {
            f"{where} {name}": one[where].get(name)
            for where in ("image", "pooled")
            for name in ("before", "after", "text")
        }
        made.append(_bars(out / "entropy.png", bars, f"von Neumann entropy, {one['unit']}", plain=("before", "text")))
    if "align" in found:
        one = found["align"]
        names = ("align", "shuffled_labels", "shuffled_patches", "untrained_projector")
        made.append(
            _bars(out / "align.png", {name.replace("_", " "): one[name] for name in names}, "Align(V, W), mean IoU")
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
        one = found["overlap"]
        bars = {name.replace("_", " "): one.get(name) for name in ("patches", "images", "images_by_chance")}
        made.append(_bars(out / "overlap.png", bars, f"share of {one['k']} nearest neighbors kept", plain=("chance",)))
    return made


def draw_grid(cells: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """An experiment: for each column a chart of all cells, a dot a seed, a bar to their mean."""
    columns = list(next(iter(cells.values())))
    figure = Figure(figsize=(7, 1 + 0.45 * len(cells) * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns, strict=True):
        values = [[value for value in cells[cell][column] if math.isfinite(value)] for cell in cells]
        means = [sum(one) / len(one) if one else 0.0 for one in values]
        axes.barh(list(cells), means, color=GREY)
        for position, one in enumerate(values):
            axes.plot(one, [position] * len(one), "o", color=BLUE, markersize=4)
        axes.set_title(column.replace(".", " ").replace("_", " "), fontsize=10, loc="left")
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def _bars(path: Path, bars: Mapping[str, float | None], title: str, plain: Sequence[str] = ()) -> Path:
    known = {name: value for name, value in bars.items() if value is not None and math.isfinite(value)}
    figure = Figure(figsize=(6.4, 0.8 + 0.4 * max(len(known), 1)), layout="constrained")
    axes = figure.subplots()
    ours = [GREY if any(word in name for word in (*plain, "shuffled", "untrained")) else BLUE for name in known]
    drawn = axes.barh(list(known), list(known.values()), color=ours)
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
    axes.set_title("energy of a vision token that is left", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    return path
