"""Make the tables of docs/paper.md from the results of `make paper`: `python -m benchmarks.paper paper-out/`.

It writes `paper-miniature.md` and, with the numbers of each seed, `paper-miniature.json` into `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pad_pipeline.machine import cores

RESULTS = Path(__file__).parent / "results"
ROWS = {
    "stage1.patches.things": "after stage 1: patches of things that are nearest to their label",
    "stage1.patches.parts": "of parts",
    "stage1.patches.stuff": "of grounds and backdrops",
    "stage1.patches.all": "of all that show one label",
    "stage1.align.align": "Align(V, W)",
    "stage1.align.shuffled_labels": "Align, labels shuffled",
    "stage1.pursuit.first_true": "first word of matching pursuit is true of the patch",
    "stage1.pursuit.first_readable": "first word is readable",
    "stage1.pursuit.readable_by_chance": "by chance",
    "stage1.entropy.image.dH": "dH, nats",
    "stage1.entropy.image.after": "entropy after the projector",
    "stage1.place.tokens.row": "row of a token, read by a linear function from what the projector says (R2)",
    "stage1.place.tokens.column": "column",
    "stage1.place.tokens.label": "label",
    "stage1.captions.slots": "caption slots that are right",
    "captions.slots": "after stage 2: caption slots that are right",
    "boxes.accuracy": "referring expressions, IoU 0.5 or more",
    "boxes.mean_iou": "referring expressions, mean IoU",
    "questions.all": "the world's questions: right answers",
    "questions.ground": "where is this",
    "questions.where": "where is the thing",
    "questions.color": "which color",
    "questions.count": "how many",
    "questions.presence": "is there one",
    "questions.parts": "which parts can be seen",
    "stage1.ideal.accuracy": "the ceiling: referring expressions with ideal tokens, before stage 2",
}
"""The titles of the numbers, in the order of the table."""
PAPER = {
    "boxes.accuracy": "+16%", "questions.all": "+4%", "stage1.entropy.image.dH": "2.80 -> 3.84",
    "stage1.align.align": "up from weak", "stage1.pursuit.first_readable": "readable words",
}  # fmt: skip
"""What the paper reports."""

_NAMED = {"patches.things": "things", "patches.parts": "parts", "patches.stuff": "grounds"}
_SAID = {"captions.slots": "caption slots", "align.align": "Align", "place.tokens.column": "column (R2)"}
GRIDS: dict[str, tuple[str, dict[str, str]]] = {
    "beta": (
        "Stage 1 alone, by β:",
        {"entropy.image.dH": "dH", "align.align": "Align", "align.shuffled_labels": "labels shuffled",
         "pursuit.precision": "pursuit precision", "pursuit.first_readable": "first word readable"},
    ),
    "objective": (
        "Stage 1 alone, by the choices of L_patch:", _NAMED | _SAID | {"place.tokens.label": "label, linear"},
    ),
    "steps": (
        "Stage 1 alone, by the number of steps:",
        _NAMED | _SAID | {"place.tokens.label": "label, linear", "place.patches.label": "label, linear, of the tower"},
    ),
}  # fmt: skip
"""Folder of a grid of trainings -> the title of its table, and its columns with their titles."""


def spread(values: list[float], sign: str = "") -> str:
    """Return the mean and the standard deviation over seeds."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    return f"{fmean(known):{sign}.3f} ± {stdev(known):.3f}" if len(known) > 1 else f"{known[0]:{sign}.3f}"


def main_table(found: dict[str, Any]) -> str:
    """Return the table of the variants, with differences to captions alone and their p values."""
    cells, others = found["cells"], list(found["differences"])
    base = next(cell for cell in cells if cell not in others)
    head = [base, *(title for cell in others for title in (cell, "difference", "p")), "the paper"]
    lines = [f"| | {' | '.join(head)} |", "| --- " * (len(head) + 1) + "|"]
    for column, title in ROWS.items():
        if column in cells[base]:
            row = [title, spread(cells[base][column])]
            for cell in others:
                difference = spread(found["differences"][cell][column], "+")
                row += [spread(cells[cell][column]), difference, f"{found['p_values'][cell][column]:.3f}"]
            lines.append(f"| {' | '.join([*row, PAPER.get(column, '')])} |")
    return "\n".join(lines)


def grid_table(found: dict[str, Any], columns: dict[str, str]) -> str:
    """Return a table with a row for each cell of an experiment."""
    lines = [f"| | {' | '.join(columns.values())} |", "| --- " * (len(columns) + 1) + "|"]
    for cell, numbers in found["cells"].items():
        lines.append(f"| {' | '.join([cell, *(spread(numbers[column]) for column in columns)])} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    """Read an experiment.json, without the paths of the machine that it ran on."""
    found: dict[str, Any] = json.loads(path.read_text())
    settings = found["experiment"]
    kept = {name: settings[name] for name in ("seeds", "stage1", "stage2")}
    cells = {name: {stage: cell[stage] for stage in ("stage1", "stage2")} for name, cell in settings["cells"].items()}
    return found | {"experiment": kept | {"cells": cells}}


def main() -> None:
    """Read the experiments below a folder, and write the table and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder of `make paper`")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "date": time.strftime("%Y-%m-%d"), "commit": commit.stdout.strip(), "command": "make paper",
        "machine": f"{cores()} cores, no GPU",
    }  # fmt: skip
    compared = read(given.out / "compare/experiment.json")
    numbers: dict[str, Any] = facts | {"compare": compared}
    seeds = len(compared["experiment"]["seeds"])
    parts = [
        "{date}; {machine}; commit {commit}; `{command}`.".format(**facts)
        + f" Means and deviations over {seeds} seeds; p is one-sided: the share of all choices of signs of the"
        " differences with a mean that is at least as far on the same side (with 5 seeds, the lowest is 0.031).",
        main_table(compared),
    ]
    for name, (title, columns) in GRIDS.items():
        if (path := given.out / name / "experiment.json").is_file():
            numbers[name] = read(path)
            parts += [title, grid_table(numbers[name], columns)]
    (given.results / "paper-miniature.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    (given.results / "paper-miniature.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
