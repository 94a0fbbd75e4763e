"""Part `analyses`: time and memory of each study of `pad analyze`, with an LLM of 32,000 words of 4,096 numbers."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.common import LLM, device, free_memory, median_seconds, peak_gib
from benchmarks.gpu.runner import Job
from benchmarks.official import drawn_on
from benchmarks.pursuit import KINDS, STEPS, images
from benchmarks.stage1 import SIZES, write_configs
from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.geometry import View
from pad_pipeline.measures.pursuit import matching_pursuit
from pad_pipeline.measures.vectors import WordVectors
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import NAME
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.training.projector import build_projector, save_projector
from pad_pipeline.workflows.learning.analyze import analyze
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.build import import_coco
from pad_pipeline.workflows.runs.options import RunOptions

IMAGES = 64


def measure(job: Job) -> None:
    """Time each study over drawn scenes, then matching pursuit alone, on tokens as alike as an image's or less."""
    count, size = (2, SIZES["tiny"]) if job.smoke else (IMAGES, SIZES[LLM])
    write_configs(job.work / LLM, size)
    view = View(size=size.vision["image_size"], patch=size.vision["patch_size"], fit="crop")
    shards = job.work / f"scenes-{os.getpid()}"
    models, world = load_models(NAME), write_world(job.work / "world", count)
    source = CocoSource(world.instances, world.images, world.llava)
    import_coco(source, shards, models.llm, models.decode, view, RunOptions())
    projector = build_projector("mlp", size.vision["hidden_size"], size.llm["hidden_size"])
    save_projector(projector, job.work / "mm_projector.bin")
    with drawn_on(device()):
        folder = job.work / LLM
        subject = Subject(job.work / "mm_projector.bin", str(folder / "vision"), str(folder / "llm"))
    for name in STUDIES:
        job.sheet.attempt(name, partial(_study, job, name, subject, shards, count), needs=3)
    del subject
    job.sheet.attempt("matching pursuit", partial(_pursuit, job), needs=5)


def _study(job: Job, name: str, subject: Subject, shards: Path, count: int) -> None:
    """Time a study twice: the first run also chooses kernels."""
    for run in ("first", "second")[: 1 if job.smoke else 2]:
        free_memory()
        began = time.perf_counter()
        analyze([name], subject, str(shards), AnalysisSettings(), None, count)
        seconds = time.perf_counter() - began
        job.sheet.row("Studies", study=name, run=run, images=count, seconds=seconds, **_rate(count, seconds))


def _rate(count: int, seconds: float) -> dict[str, float]:
    return {"images/s": count / seconds, "peak GiB": peak_gib()}


def _pursuit(job: Job) -> None:
    """Time matching pursuit for the tokens of one image, and compare its words with those of the CPU."""
    words, width = (300, 64) if job.smoke else (32_000, 4096)
    table = torch.randn(words, width, generator=torch.Generator().manual_seed(0)) * 0.02
    on_cpu, vectors = WordVectors(table), WordVectors(table.to(device()))
    for kind in [*KINDS][: 1 if job.smoke else len(KINDS)]:
        tokens = next(images(table, kind))
        here = tokens.to(device())
        for orthogonal in (False, True):
            free_memory()
            work = partial(matching_pursuit, here, vectors, STEPS, orthogonal)
            seconds, found = median_seconds(work, repeats=3, warm=1), work().words
            same = (found.cpu() == matching_pursuit(tokens, on_cpu, STEPS, orthogonal).words).float().mean()
            form = "orthogonal" if orthogonal else "plain"
            cells = {"seconds an image": seconds, "same words as the CPU": float(same), "peak GiB": peak_gib()}
            job.sheet.row("Matching pursuit, float32", words=words, tokens=kind, form=form, **cells)
