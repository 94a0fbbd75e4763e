"""`pad demo`: the whole chain on drawn scenes, in minutes, without network."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor, LlavaForConditionalGeneration

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.world import LABELS, draw_scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.shards.verify import verify_run
from pad_pipeline.sources import open_source
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.training.settings import TrainSettings
from workflows.build import build, import_coco
from workflows.engines import Engine
from workflows.models import load_models
from workflows.small_models import VISION_PATCH, VISION_SIZE, write_small_models
from workflows.train import train

STEPS = 60


def run_demo(out: Path, scenes: int, engine: Engine, console: Console) -> None:
    """Draw, build, verify, import, train, generate; everything that is made stays in `out`.

    Raises:
        UserError: `out` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("--out", out, "it is there already, and not empty", "delete it, or name another folder")

    console.rule(f"1  Draw {scenes} scenes: things with parts, exact masks, captions")
    world = write_world(out / "world", scenes)

    console.rule("2  Make small models of the real families, with random weights")
    captions = [draw_scene(1, index).caption for index in range(300)]
    toml = write_small_models(out / "models", list(LABELS), captions)
    models, view = load_models(str(toml)), View(size=VISION_SIZE, patch=VISION_PATCH)
    console.print(f"RAM, Grounding DINO, SAM, CLIP and LLaMA, named in {toml}", highlight=False)

    console.rule(f"3  pad build: tag -> ground -> segment -> patchify, on engine {engine}")
    source = open_source(world.llava, world.images)
    built = build(source, out / "shards", models, view, shard_size=16, engine=engine)

    console.rule("4  pad import coco: the exact masks, in the same format")
    exact = CocoSource(world.instances, world.images, world.llava)
    imported = import_coco(exact, out / "exact", models.llm, models.decode, view, shard_size=16)
    damaged = [name for folder in ("shards", "exact") for name, wrong in verify_run(out / folder) if wrong]
    if damaged:
        raise UserError("--out", out, f"pad verify finds damage in {damaged}", "look at the disk, and run it again")
    console.print("pad verify: all shards are whole")

    console.rule(f"5  pad train --stage 1: {STEPS} steps on the exact masks")
    settings = TrainSettings(batch_size=16, micro_batch=16, steps=STEPS, learning_rate=3e-3, loader_threads=2)
    trained = train(out / "exact", str(out / "models/clip"), str(out / "models/llm"), out / "run", settings)
    console.print(trained, highlight=False, soft_wrap=True)

    console.rule("What there is now")
    table = Table("folder", "images", "ok", "empty", "failed", "regions")
    for folder, totals in (("shards", built), ("exact", imported)):
        numbers = (str(totals[name]) for name in ("images", "ok", "empty", "failed", "regions"))
        table.add_row(str(out / folder), *numbers)
    console.print(table)
    said = generate(out / "run/hf", world.images / "scene-00000.png")
    console.print(f"LlavaForConditionalGeneration, loaded from {out / 'run/hf'}, on scene 0: {said!r}", markup=False)
    console.print(
        "All models have random weights: the regions in shards/ and the generated text mean nothing, and L_caption can "
        "hardly fall; the regions in exact/ are true, and L_patch falls on them. Look further: pad stats "
        + str(out / "exact"),
        highlight=False,
        soft_wrap=True,
    )


def generate(folder: Path, image: Path, tokens: int = 12) -> str:
    """What stock transformers makes of an exported folder: the caption that it generates for an image."""
    with quiet():
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    inputs = processor(images=Image.open(image).convert("RGB"), text="<image>", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
