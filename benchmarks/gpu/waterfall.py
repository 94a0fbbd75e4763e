"""Part `waterfall`: the chain's images per second, technique by technique, and its share of the card."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.annotate import H200_TFLOPS, Setup
from benchmarks.chain import STAGES, Annotators, Work, count_flops, detector_pixels, drift, time_stages
from benchmarks.gpu.card import PRODUCT
from benchmarks.gpu.common import device, free_memory, on_gpu, peak_gib, roofline, work_of
from benchmarks.gpu.runner import Job
from benchmarks.reference import ReferenceLoop
from pad_pipeline.records import ImageRecord

ALL = Setup("+ fused attention", "bfloat16", batched=True, fused=True)
PADDED = Setup("+ padded to 32", "bfloat16", batched=True, fused=True, pad_to=32)
LARGER = Setup("+ batches 4 x as large", "bfloat16", batched=True, fused=True, pad_to=32, larger=4)
FASTEST = [("one size", ALL), ("many sizes", PADDED), ("one size", LARGER), ("many sizes", LARGER), ("many sizes", ALL)]
"""What the goals are about: measured first."""
STEPS = [
    Setup("+ batches", "bfloat16", batched=True),
    Setup("+ bfloat16", "bfloat16"),
    Setup("float32, batches, fused attention", batched=True, fused=True),
    Setup("stages, float32, batch 1"),
]
"""The steps between the reference loop and the fastest."""
IMAGES, FEW, REFERENCE = 256, 48, 8
"""Images of a fast row, of a slow one, and of the reference loop."""


def measure(job: Job) -> None:
    """Measure the reference loop, the fastest rows, and then each step between them."""
    work = {sizes: work_of(job, IMAGES, sizes == "many sizes") for sizes in ("one size", "many sizes")}
    table = Table(job, work)
    sheet = job.sheet
    sheet.attempt("reference loop", table.reference)
    free_memory()
    stages = {"bfloat16": Annotators(work["one size"].models, "bfloat16")}
    for sizes, setup in FASTEST[: 1 if job.smoke else None]:
        sheet.attempt(f"{setup.name}, {sizes}", partial(table.add, sizes, setup, stages["bfloat16"], IMAGES), needs=8)
    for setup in STEPS[: 1 if job.smoke else 4]:
        if setup.precision not in stages:
            stages.clear()
            free_memory()
            stages[setup.precision] = Annotators(work["one size"].models, setup.precision)
        sheet.attempt(setup.name, partial(table.add, "one size", setup, stages[setup.precision], FEW), needs=8)


class Table:
    """The rows of a waterfall."""

    def __init__(self, job: Job, work: dict[str, Work]) -> None:
        self.job, self.work = job, work
        self.flops: dict[str, float] = {}
        """Operations of each stage for an image of one size."""
        self.base: dict[str, list[ImageRecord]] = {}
        """Findings with which each row is compared, by the sizes of the images."""
        self.rates: dict[str, float] = {}
        """Images per second of the reference loop, by the sizes of the images."""
        self.peak = roofline(job).get(PRODUCT, float(H200_TFLOPS))

    def reference(self) -> None:
        """Count the operations of the reference loop, and time it on images of one size and of many."""
        loop = ReferenceLoop(self.work["one size"].models, device())
        one = self.work["one size"]
        self.flops = count_flops(loop, one.rows(1)[0], one.given)
        for stage, found in self.flops.items():
            self.job.sheet.row("Operations of an image of one size", stage=stage, TFLOP=found / 1e12)
        for sizes, work in [*self.work.items()][: 1 if self.job.smoke else 2]:
            loop(work.rows(1), work.given)  # warm
            free_memory()
            rows = work.rows(1 if self.job.smoke else REFERENCE)
            seconds = loop(rows, work.given)
            self.base[sizes], self.rates[sizes] = rows, len(rows) / sum(seconds.values())
            self._row(sizes, "reference loop", rows, seconds, 1, {})

    def add(self, sizes: str, setup: Setup, stages: Annotators, images: int) -> None:
        """Time the stages with a setup."""
        work = self.work[sizes]
        stages.use(setup.batched, setup.fused, setup.pad_to, setup.larger)
        free_memory()
        rows = work.rows(1 if self.job.smoke else images)
        warm = partial(work.rows, min(len(rows), 64 if images == IMAGES else 16 if setup.batched else 4))
        seconds = time_stages(stages.stages, rows, warm, work.given)
        apart = drift(self.base[sizes], rows, work.drawn) if sizes in self.base else {}
        self._row(sizes, setup.name, rows, seconds, setup.pad_to, apart)

    def _row(
        self, sizes: str, name: str, rows: list[ImageRecord], seconds: dict[str, float], pad_to: int, apart: Any
    ) -> None:
        count, work = len(rows), self.work[sizes]
        scale = 1.0 if work.drawn else detector_pixels(work.sizes[:count], pad_to)
        flops = {stage: found * (scale if stage == "ground" else 1) for stage, found in self.flops.items()}
        total, chain = sum(flops.values()), count / sum(seconds.values())
        cells: dict[str, Any] = {"what": name, "images": count}
        cells |= {f"{stage} img/s": count / seconds[stage] for stage in STAGES}
        cells |= {"chain img/s": chain}
        cells["x reference"] = chain / self.rates[sizes] if sizes in self.rates else ""
        cells |= {"TFLOP an image": total / 1e12, "TFLOP/s": chain * total / 1e12}
        if on_gpu():
            cells |= {"of the roofline": chain * total / 1e12 / self.peak, "peak GiB": peak_gib()}
            cells |= {f"{stage} TFLOP/s": flops.get(stage, 0.0) * count / seconds[stage] / 1e12 for stage in STAGES}
        if apart:
            cells |= {"tags F1": apart["tags F1"]} | ({"mask IoU": apart["mask IoU"]} if "mask IoU" in apart else {})
        self.job.sheet.row(f"Images of {sizes}", **cells)
