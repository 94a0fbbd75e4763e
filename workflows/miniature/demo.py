"""`pad demo`: builds a data set from drawn scenes, trains on it and scores the results, in minutes and offline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from pad_pipeline.console import say
from pad_pipeline.errors import UserError
from pad_pipeline.miniature.shipped import NAME, member_reference
from pad_pipeline.report.overlay import contact_sheet, panels
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.storage import claim_folder
from pad_pipeline.verify import verify_run
from pad_pipeline.workflows.miniature.scoring import TEST_WORLD, Evaluation, align, annotate, as_dict, table
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.options import EngineName

MARK = ".pad-demo"
"""A file that marks the folder of a demo."""
SHOWN = 12
"""The number of scenes on `sheet.png`."""


def run_demo(out: Path, scenes: int, steps: int, engine: EngineName, console: Console) -> dict[str, Any]:
    """Draw scenes, build their shards, verify and score them, and train two projectors, all in the folder `out`. Return
    the scores; raise `UserError` if the folder is not empty."""
    claim_folder(out)
    models, vision = load_models(NAME), member_reference(NAME, "clip")
    claim_folder(out, MARK, "`make demo` may delete this folder.\n")

    console.rule(f"1  Draw {scenes} scenes, and annotate them: pad build, models {NAME}, engine {engine}")
    score = annotate(out / "world", out / "shards", models, scenes, TEST_WORLD, engine)
    damaged = [name for name, wrong in verify_run(out / "shards") if wrong]
    if damaged:
        raise UserError("out", out, f"pad verify finds damage in {damaged}", "check the disk, and run it again")
    console.print("pad verify: all shards are whole")

    console.rule(f"2  pad train, stage 1, twice {steps} steps: caption loss alone, and with the patch loss")
    pairs = align(out / "shards", out / "stage1", vision, models, 1, steps, console)

    console.rule("3  What came out, against what was drawn")
    found = Evaluation(score, alignment=pairs)
    console.print(table(found))
    _write_sheet(out / "shards", out / "sheet.png")
    say(f"Images of scenes with tags, boxes, masks and patches: {out / 'sheet.png'}", to=console)
    say(f"Look further: pad stats {out / 'shards'}", to=console)
    say(f"The trained model, for stock transformers: {out / 'stage1/patch-0/hf'}", to=console)
    return as_dict(found)


def _write_sheet(shards: Path, path: Path) -> None:
    """Write the first images of a run as one PNG: boxes, masks and the patch grid of each, with caption and tags."""
    folder, shown = open_shards(shards), []
    rows = folder.usable()
    for number in range(min(SHOWN, len(rows))):
        sample = folder.sample(*rows[number])
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        shown.append(panels(image, sample.meta, sample.coverage, folder.run.view))
    contact_sheet(shown).save(path)
