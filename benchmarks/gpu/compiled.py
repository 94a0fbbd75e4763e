"""Part `compile`: whether compiled image encoders find the same, how fast they are, and how long compiling takes."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.chain import Annotators, Work, drift, time_stages
from benchmarks.gpu.common import work_of
from benchmarks.gpu.correctness import ready_rows
from benchmarks.gpu.runner import Job
from pad_pipeline.images import DecodeSettings
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings

IMAGES = 256


def measure(job: Job) -> None:
    """Compile the segmenter, which takes most of the time, and then the tagger."""
    work = work_of(job, IMAGES)
    plain = Annotators(work.models, "bfloat16")
    for name, kind in (("segment", SegmenterSettings), ("tag", TaggerSettings)):
        job.sheet.attempt(name, partial(_compare, job, work, plain, name, kind), needs=20)


def _compare(job: Job, work: Work, plain: Annotators, name: str, kind: type[StageSettings]) -> None:
    count = 1 if job.smoke else IMAGES
    compute = ComputeSettings(precision="bfloat16", compile=not job.smoke)
    began = time.perf_counter()
    compiled = work.models.annotator(kind).make(DecodeSettings(), compute)
    ready = time.perf_counter() - began
    seconds, found = [], []
    for stage in (plain.stages[name], compiled):
        rows = ready_rows(work, plain, count, name)
        seconds.append(time_stages({name: stage}, rows, partial(work.rows, min(count, 64)), {})[name])
        found.append(rows)
    same = drift(found[0], found[1], drawn=False)["mask IoU" if name == "segment" else "tags F1"]
    cells = {"img/s": count / seconds[0], "compiled img/s": count / seconds[1], "faster": seconds[0] / seconds[1]}
    cells |= {"seconds to load and compile": ready, "mask IoU, or F1 of tags": same}
    job.sheet.row("Compiled image encoders", stage=name, images=count, **cells)
