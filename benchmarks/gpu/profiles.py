"""Part `profile`: how busy each stage keeps the GPU, its largest kernels, and the pauses between them."""

from __future__ import annotations

from functools import partial

from benchmarks.chain import Annotators, Work, check
from benchmarks.gpu.common import Traced, short, traced, work_of
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
    count = 2 if job.smoke else IMAGES
    stages.stages[name](Shard(0, ready_rows(work, stages, count, name)))  # warm
    rows = ready_rows(work, stages, count, name)
    seen = traced(partial(stages.stages[name], Shard(0, rows)))
    check(rows, name)
    report(job, name, seen, count)


def report(job: Job, name: str, seen: Traced, count: int) -> None:
    """Write the rows of a profile of `count` images."""
    busy, pauses = seen.gaps()
    long = [pause for pause in pauses if pause > LONG]
    job.sheet.row(
        "How busy the GPU is", what=name, images=count, seconds=seen.seconds, busy=busy / max(seen.seconds, 1e-9),
        kernels=len(seen.work()), pauses=len(long), in_pauses=sum(long) / max(seen.seconds, 1e-9),
        longest_ms=str([round(pause * 1000, 1) for pause in sorted(long, reverse=True)[:5]]),
    )  # fmt: skip
    for kernel, calls, seconds in seen.largest():
        share = seconds / max(busy, 1e-9)
        job.sheet.row("Largest kernels", what=name, kernel=short(kernel), calls=calls, ms=seconds * 1000, share=share)
