"""Part `correctness`: whether the GPU finds what float32 and the CPU find, with the kernels that it should use."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.chain import BOXES, Annotators, Precision, Work, check, drift, miniature_work
from benchmarks.gpu.common import device, free_memory, on_gpu, peak_gib, short, traced, work_of
from benchmarks.gpu.runner import Job
from benchmarks.reference import ReferenceLoop
from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.records import ImageRecord, Region, Shard, Tag

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ATTENTION = "aten::_scaled_dot_product"
"""Beginning of the operations that torch puts in place of an attention: flash, efficient, math."""


def measure(job: Job) -> None:
    """Compare precisions, devices and batches; list kernels; let memory run out."""
    sheet = job.sheet
    sheet.attempt("miniature", partial(_miniature, job))
    free_memory()
    work = work_of(job, 16)
    exact, fast = Annotators(work.models, "float32"), Annotators(work.models, "bfloat16")
    base: list[ImageRecord] = []
    sheet.attempt("precisions", lambda: base.extend(_precisions(job, work, exact, fast)))
    sheet.attempt("features", partial(_features, job, work, exact, fast))
    sheet.attempt("kernels and copies", partial(_kernels, job, work, fast))
    sheet.attempt("out of memory", partial(_out_of_memory, job, work, fast))
    if base and not job.smoke:
        del fast
        sheet.attempt("CPU", partial(_on_cpu, job, work, base[:2]), needs=25)


def _miniature(job: Job) -> None:
    """Compare trained networks, whose truth is known, with the reference loop in float32 on the same device."""
    count = 1 if job.smoke else 32
    work = miniature_work(count)
    base = work.rows(count)
    ReferenceLoop(work.models, device())(base, {})
    for precision in PRECISIONS[: 1 if job.smoke else 2]:
        for batched in (True,) if job.smoke else (False, True):
            rows = work.rows(count)
            annotators = Annotators(work.models, precision).use(batched)
            for name, stage in annotators.stages.items():
                stage(Shard(0, rows))
                check(rows, name)
            found = drift(base, rows, drawn=True)
            job.sheet.row("The miniature against the loop", precision=precision, batches=batched, **found)


def _precisions(job: Job, work: Work, exact: Annotators, fast: Annotators) -> list[ImageRecord]:
    """Compare bfloat16 with float32, each model on the same inputs; return the rows in float32."""
    count = 1 if job.smoke else 16
    base, rows = work.rows(count), work.rows(count)
    for stages, into in ((exact, base), (fast, rows)):
        tagger = stages.tagger
        least, tagger.thresholds = tagger.thresholds, np.full_like(tagger.thresholds, -1)
        tagger(Shard(0, into))
        check(into, "tag")
        tagger.thresholds = least
    for line in compare_tags(base, rows, exact.tagger.thresholds):
        job.sheet.row("bfloat16 against float32", model="tagger", **line)
    for into in (rows, base):  # `base` last, because the tags are taken from it
        _take_tags(into, base, exact.tagger.thresholds, work)
    for stages, into in ((exact, base), (fast, rows)):
        detector = stages.detector
        keep = detector.settings
        detector.settings = keep.model_copy(update={"box_threshold": 0.0, "nms_iou": 1.0, "nms_iou_across_labels": 1.0})
        detector(Shard(0, into))
        check(into, "ground")
        detector.settings = keep
    for line in compare_boxes(base, rows):
        job.sheet.row("bfloat16 against float32", model="detector", **line)
    for row in base:
        row.regions = row.regions[:BOXES]
        if "ground" in work.given:
            work.given["ground"](row)
    for one, row in zip(base, rows, strict=True):
        row.status, row.regions = one.status, [Region(r.label, r.box) for r in one.regions]
    for stages, into in ((exact, base), (fast, rows)):
        stages.segmenter(Shard(0, into))
        check(into, "segment")
    for line in compare_masks(base, rows):
        job.sheet.row("bfloat16 against float32", model="segmenter", **line)
    return base


def _features(job: Job, work: Work, exact: Annotators, fast: Annotators) -> None:
    """Compare the features of the encoders: the relative error is 1e-3 to 1e-2 where only bfloat16 is at work."""
    count = 1 if job.smoke else 4
    found: list[dict[str, torch.Tensor]] = []
    for stages in (exact, fast):
        kept: dict[str, torch.Tensor] = {}
        encoders = {
            "tag": stages.tagger.network.visual_encoder,
            "ground": stages.detector.model.model.model.encoder,
            "segment": stages.segmenter.sam.sam.image_encoder,  # type: ignore[union-attr]
        }
        for name, encoder in encoders.items():
            rows = ready_rows(work, exact, count, name)  # the same tags for both
            hook = encoder.register_forward_hook(partial(_keep, kept, name))
            stages.stages[name](Shard(0, rows))
            hook.remove()
            check(rows, name)
        found.append(kept)
    for name, one in found[0].items():
        error = (found[1][name] - one).norm() / one.norm()
        job.sheet.row("Features of the encoders", stage=name, shape=str([*one.shape]), relative_error=float(error))


def _keep(kept: dict[str, torch.Tensor], name: str, _module: object, _inputs: object, output: Any) -> None:
    kept[name] = (output if isinstance(output, torch.Tensor) else output[0]).float()


def _take_tags(rows: list[ImageRecord], base: list[ImageRecord], thresholds: np.ndarray, work: Work) -> None:
    for row, one in zip(rows, base, strict=True):
        row.tags = [tag for tag, least in zip(one.tags, thresholds, strict=True) if tag.score > least]
        if "tag" in work.given:
            work.given["tag"](row)
        row.status = "ok" if row.tags else "empty"


def compare_tags(base: list[ImageRecord], rows: list[ImageRecord], thresholds: np.ndarray) -> list[dict[str, Any]]:
    """Return how far the scores of all tags are apart, and whether the same tags are on."""
    one, two = (np.array([[tag.score for tag in row.tags] for row in some]) for some in (base, rows))
    apart, on = np.abs(one - two), (one > thresholds, two > thresholds)
    shared = 2 * float((on[0] & on[1]).sum()) / max(float(on[0].sum() + on[1].sum()), 1.0)
    spread = float(one.std(1).mean())
    return [{"mean": float(apart.mean()), "largest": float(apart.max()), "F1": shared, "spread": spread}]


def compare_boxes(base: list[ImageRecord], rows: list[ImageRecord]) -> list[dict[str, Any]]:
    """Return the IoU of the 20 best boxes of an image in `base` with the nearest in `rows`, and how far the scores of
    the two are apart. Which boxes pass a threshold depends on hardly anything with random weights, so none is set."""
    overlaps, apart, scores = [], [], []
    for one, two in zip(base, rows, strict=True):
        for region in sorted(one.regions, key=lambda region: -region.score)[:BOXES]:
            pairs = ((iou(region.box, other.box), abs(region.score - other.score)) for other in two.regions)
            overlap, difference = max(pairs, key=lambda pair: pair[0] - pair[1], default=(0.0, 1.0))
            overlaps.append(overlap)
            apart.append(difference)
        scores += [region.score for region in one.regions]
    found = {"mean": fmean(apart or [0.0]), "largest": max(apart, default=0.0), "box IoU": fmean(overlaps or [0.0])}
    found["boxes with IoU 0.5"] = fmean([overlap >= 0.5 for overlap in overlaps] or [0.0])
    return [found | {"spread": float(np.std(scores)) if scores else 0.0}]


def compare_masks(base: list[ImageRecord], rows: list[ImageRecord]) -> list[dict[str, Any]]:
    """Return the IoU of the masks of the same boxes, and how far their predicted IoUs are apart."""
    from pycocotools import mask as coco_mask

    pairs = [(a, b) for one, two in zip(base, rows, strict=True) for a, b in zip(one.regions, two.regions, strict=True)]
    overlaps = [float(coco_mask.iou([a.rle], [b.rle], [0])[0, 0]) for a, b in pairs]
    apart = [abs(a.predicted_iou - b.predicted_iou) for a, b in pairs]
    spread = float(np.std([a.predicted_iou for a, _ in pairs])) if pairs else 0.0
    return [
        {"mean": fmean(apart or [0.0]), "largest": max(apart, default=0.0), "spread": spread,
         "mask IoU": fmean(overlaps or [0.0]), "lowest mask IoU": min(overlaps, default=0.0)}
    ]  # fmt: skip


def ready_rows(work: Work, stages: Annotators, count: int, stage: str) -> list[ImageRecord]:
    """Return new rows as the stages before `stage` leave them."""
    rows = work.rows(count)
    for name in ("tag", "ground"):
        if name == stage:
            return rows
        if name == "ground" and "ground" in work.given:
            for row in rows:
                work.given["ground"](row)
            continue
        stages.stages[name](Shard(0, rows))
        check(rows, name)
        for row in rows if name in work.given else ():
            work.given[name](row)
    return rows


def _kernels(job: Job, work: Work, fast: Annotators) -> None:
    """List the attention kernels that torch chooses in two batches of each stage, and the copies by kind of memory.

    A pageable copy makes the host wait for the GPU, which pinned copies do not.
    """
    for name, stage in fast.stages.items():
        count = 1 if job.smoke else 2 * stage.batch_size
        stage(Shard(0, ready_rows(work, fast, count, name)))  # warm
        rows = ready_rows(work, fast, count, name)
        seen = traced(partial(stage, Shard(0, rows)))
        check(rows, name)
        for operation, calls in seen.operations(ATTENTION).items():
            job.sheet.row("Attention that torch chose", stage=name, operation=operation, calls=calls)
        for kernel, calls, seconds in seen.largest(10**6) if on_gpu() else ():
            if any(word in kernel.lower() for word in ("flash", "fmha", "attention", "softmax")):
                cells = {"kernel": short(kernel), "calls": calls, "ms": seconds * 1000}
                job.sheet.row("Kernels of attention", stage=name, **cells)
        copies: dict[str, list[dict[str, Any]]] = {}
        for event in seen.events:
            if event.get("cat") == "gpu_memcpy":
                copies.setdefault(event["name"], []).append(event)
        waits = sum(event["name"] in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for event in seen.events)
        for kind, events in copies.items():
            size = sum(float(event.get("args", {}).get("bytes", 0)) for event in events) / 1e6
            cells = {"copies": len(events), "MB": size, "ms": sum(event["dur"] for event in events) / 1000}
            job.sheet.row("Copies", stage=name, kind=kind, images=count, **cells, waits=waits)


def _out_of_memory(job: Job, work: Work, fast: Annotators) -> None:
    """Give each stage too little memory for its batch: it should halve the batch, go on, and find the same."""
    for name, stage in [*fast.stages.items()][: 1 if job.smoke else 3]:
        count = 2 if job.smoke else 32
        rows, small = ready_rows(work, fast, count, name), ready_rows(work, fast, count, name)
        stage.batch_size = max(1, count // 8)
        free_memory()
        held = torch.cuda.memory_allocated() / 2**30 if on_gpu() else 0.0
        stage(Shard(0, small))
        check(small, name)
        used = peak_gib() - held  # of an eighth of the batch
        free_memory()
        stage.batch_size = count
        with limited(held + 3 * used):
            stage(Shard(0, rows))
        failed = sum(row.status == "failed" for row in rows)
        same = drift(small, rows, drawn=False)
        sizes = sorted({*stage._fits.values()})
        cells: dict[str, Any] = {
            "batch": count,
            "allowed GiB": held + 3 * used,
            "peak GiB": peak_gib(),
            "failed": failed,
        }
        measure = {"tag": "tags F1", "ground": "boxes F1", "segment": "mask IoU"}[name]
        cells |= {"halved to": str(sizes or "never"), "compared": measure, "with small batches": same[measure]}
        job.sheet.row("Out of memory", stage=name, **cells)
        stage._fits.clear()
        fast.use()


class limited:
    """Lets tensors take at most some GiB of the GPU inside a `with` block."""

    def __init__(self, gibibytes: float) -> None:
        self.gibibytes = gibibytes

    def __enter__(self) -> None:
        if on_gpu():
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory / 2**30
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.gibibytes / total))

    def __exit__(self, *_: object) -> None:
        if on_gpu():
            torch.cuda.set_per_process_memory_fraction(1.0)


def _on_cpu(job: Job, work: Work, base: list[ImageRecord]) -> None:
    """Compare float32 on the GPU, in `base`, with float32 on the CPU."""
    with patch("torch.cuda.is_available", return_value=False):
        annotators = Annotators(work.models, "float32")
        rows = work.rows(len(base))
        for row, one in zip(rows, base, strict=True):
            row.status = "ok"
            row.tags = [Tag(tag.label, tag.score) for tag in one.tags]
            row.regions = [Region(region.label, region.box) for region in one.regions]
        annotators.segmenter(Shard(0, rows))
        check(rows, "segment")
        for line in compare_masks(base, rows):
            job.sheet.row("float32: CPU against GPU", model="segmenter", **line)
        tagged = work.rows(len(base))
        annotators.tagger(Shard(0, tagged))
        check(tagged, "tag")
    near = [
        abs(one.score - two.score)
        for a, b in zip(base, tagged, strict=True)
        for one in a.tags
        for two in b.tags
        if one.label == two.label
    ]
    kept = {"mean": fmean(near or [1.0]), "largest": max(near, default=1.0), "tags compared": len(near)}
    job.sheet.row("float32: CPU against GPU", model="tagger", **kept)
