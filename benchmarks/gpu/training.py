"""Part `stage1`: samples per second of training stage 1 of a 7B model, by technique and micro-batch."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.annotate import H200_TFLOPS
from benchmarks.gpu.card import PRODUCT
from benchmarks.gpu.common import LLM, device, free_memory, on_gpu, roofline, traced
from benchmarks.gpu.correctness import ATTENTION
from benchmarks.gpu.profiles import profile
from benchmarks.gpu.runner import Job
from benchmarks.stage1 import ROWS, SIZES, Row, Step, build_model, write_configs
from pad_pipeline.training.model import MultimodalModel

REFERENCE, WITH_LOGITS, PLAIN, COMPILED = ROWS
PLAN = [(PLAIN, (16, 32, 8)), (REFERENCE, (16,)), (COMPILED, (16, 32)), (WITH_LOGITS, (16,))]
"""Rows in order of worth, with their micro-batches."""


def measure(job: Job) -> None:
    """Measure the rows; profile a step of the first."""
    write_configs(job.work / LLM, SIZES["tiny" if job.smoke else LLM])
    for row, batches in PLAN:
        if row.compiled and job.smoke:
            continue
        job.sheet.attempt(row.name, partial(_row, job, row, (2,) if job.smoke else batches), needs=10)
        free_memory()


def _row(job: Job, row: Row, batches: tuple[int, ...]) -> None:
    model = build_model(job.work / LLM, row, device())
    for samples in batches:
        free_memory()
        job.sheet.attempt(f"{row.name}, {samples}", partial(_batch, job, model, row, samples), needs=8)
    if row is PLAIN:
        job.sheet.attempt("profile", partial(_profile, job, model, row, batches[0]), needs=8)


def _batch(job: Job, model: MultimodalModel, row: Row, samples: int) -> None:
    try:
        found = Step(model, row, samples, device()).measure(steps=1 if job.smoke else 4, warm=1 if job.smoke else 2)
    except torch.OutOfMemoryError:
        job.sheet.row("Stage 1", what=row.name, **{"micro-batch": samples, "samples/s": "out of memory"})
        return
    if on_gpu():
        found["of the roofline"] = found["TFLOP/s"] / roofline(job).get(PRODUCT, float(H200_TFLOPS))
    job.sheet.row("Stage 1", what=row.name, **found)


def _profile(job: Job, model: MultimodalModel, row: Row, samples: int) -> None:
    free_memory()
    step = Step(model, row, samples, device())
    step()
    for operation, calls in traced(step).operations(ATTENTION).items():
        job.sheet.row("Attention that torch chose", operation=operation, calls=calls)
    profile(job, f"a step of stage 1, micro-batch {samples}", step, step, samples)
