"""`pad demo`: builds a data set from drawn scenes, trains on it and scores the results, in minutes and offline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.console import say
from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import NAME, member_reference
from pad_pipeline.report.overlay import below, contact_sheet, panels
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.storage import claim_folder
from pad_pipeline.verify import verify_run
from pad_pipeline.workflows.learning.analyze import analyze
from pad_pipeline.workflows.miniature.scoring import (
    PROBE_WORLD,
    TEST_WORLD,
    Evaluation,
    align,
    annotate,
    as_dict,
    table,
)
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from pad_pipeline.workflows.runs.build import import_coco
from pad_pipeline.workflows.runs.options import EngineName, RunOptions

MARK = ".pad-demo"
"""A file that marks the folder of a demo."""
SHOWN = 12
"""The number of scenes on `sheet.png`."""
WORDS = 4
"""The number of scenes that are drawn as words."""


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
    _write_sheet(out / "shards", _words(out, models), out / "sheet.png")
    say(f"Scenes with tags, boxes, masks and patches, and as words: {out / 'sheet.png'}", to=console)
    say(f"Look further: pad stats {out / 'shards'}", to=console)
    say(f"The trained model, for stock transformers: {out / 'stage1/patch-0/hf'}", to=console)
    return as_dict(found)


def _words(out: Path, models: ModelSettings) -> list[Image.Image]:
    """Draw scenes that no projector was trained on as words: what is there, and the names by both projectors."""
    world = write_world(out / "heldout-world", WORDS, PROBE_WORLD)
    source = CocoSource(world.instances, world.images)
    import_coco(source, out / "heldout", models.llm, models.decode, models.view, RunOptions())
    aligned, alone = (Subject(out / "stage1" / f"{name}-0") for name in ("patch", "caption"))
    drawn = out / "words"
    analyze(["words"], aligned, str(out / "heldout"), AnalysisSettings(), drawn, drawings=WORDS, beside=[alone])
    return [Image.open(path).convert("RGB") for path in sorted(drawn.glob("words-*.png"))]


def _write_sheet(shards: Path, words: list[Image.Image], path: Path) -> None:
    """Write the first images of a run as one PNG: boxes, masks and the patch grid of each, with caption and tags; and
    below them the drawings as words."""
    folder, shown = open_shards(shards), []
    rows = folder.usable()
    for number in range(min(SHOWN, len(rows))):
        sample = folder.sample(*rows[number])
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        shown.append(panels(image, sample.meta, sample.coverage, folder.run.view))
    below(contact_sheet(shown), words).save(path)
