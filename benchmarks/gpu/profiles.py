"""Part `profile`: how busy each stage keeps the GPU, its largest kernels, and the pauses between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from benchmarks.chain import Annotators, Work, check, synchronize
from benchmarks.gpu.common import short, traced, work_of
from benchmarks.gpu.correctness import ready_rows
from benchmarks.gpu.runner import Job
from pad_pipeline.records import Shard

IMAGES = 64
LONG = 100e-6
"""Pauses of the GPU longer than this, in seconds, count as the host's."""


def measure(job: Job) -> None:
    """Profile each stage on photographs of many sizes, padded to 32, in bfloat16."""
    work = work_of(job, IMAGES, many_sizes=True)
    stages = Annotators(work.models, "bfloat16").use(pad_to=1 if job.smoke else 32)
    for name in ("segment", "ground", "tag"):  # by their share of the time
        job.sheet.attempt(name, partial(_stage, job, work, stages, name))


def _stage(job: Job, work: Work, stages: Annotators, name: str) -> None:
    count = 1 if job.smoke else IMAGES
    stages.stages[name](Shard(0, ready_rows(work, stages, count, name)))  # warm
    plain, rows = (ready_rows(work, stages, count, name) for _ in range(2))
    profile(
        job, name, partial(stages.stages[name], Shard(0, plain)), partial(stages.stages[name], Shard(0, rows)), count
    )
    check([*plain, *rows], name)


def profile(job: Job, name: str, plain: Callable[[], object], work: Callable[[], object], count: int) -> None:
    """Time `plain`, profile `work`, which does the same for `count` images, and write the rows."""
    synchronize()
    began = time.perf_counter()
    plain()
    synchronize()
    seconds = time.perf_counter() - began
    seen = traced(work, operations=False)
    busy, pauses = seen.gaps()
    long = [pause for pause in pauses if pause > LONG]
    job.sheet.row(
        "How busy the GPU is", what=name, images=count, seconds=seconds, busy=busy / seconds,
        profiled_seconds=seen.seconds, kernels=len(seen.work()), pauses=len(long),
        in_pauses=sum(long) / seen.seconds,
        longest_ms=str([round(pause * 1000, 1) for pause in sorted(long, reverse=True)[:5]]),
    )  # fmt: skip
    for kernel, calls, seconds in seen.largest(10):
        share = seconds / max(busy, 1e-9)
        job.sheet.row("Largest kernels", what=name, kernel=short(kernel), calls=calls, ms=seconds * 1000, share=share)
