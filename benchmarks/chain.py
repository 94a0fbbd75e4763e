"""The annotation stages as benchmarks take them: with techniques switched on one by one, on fixed work, and timed."""

from __future__ import annotations

import io
import json
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.flop_counter import FlopCounterMode
from transformers.image_transforms import get_size_with_aspect_ratio

from benchmarks.official import TAGS_ON, write_official_size
from benchmarks.photographs import ONE_SIZE, Size, as_records, draw_sizes, photographs
from benchmarks.reference import ReferenceLoop, Seconds, dino_swaps, sam_swaps, use_attention
from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.score import Score
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.records import ImageRecord, Region, Shard
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.segment import Segmenter, SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import Tagger, TaggerSettings
from pad_pipeline.storage import atomic_write_text
from pad_pipeline.workflows.models.settings import ModelSettings, load_models

STAGES = ("tag", "ground", "segment")
BOXES = 20
"""Of each image, at official size, where random weights find nothing of their own."""
WORLD = 940_000
"""Seed of the drawn scenes: not the training's, nor the evaluation's."""

Given = dict[str, Callable[[ImageRecord], None]]
"""Stage -> a function that puts fixed findings in place of the stage's own, where these mean nothing."""
Precision = Literal["float32", "bfloat16"]


class Work(NamedTuple):
    """Models, and images for them."""

    models: ModelSettings
    files: Sequence[bytes]
    sizes: Sequence[Size]
    given: Given
    drawn: bool
    """Whether the images are drawn scenes, of which the truth is known."""

    def rows(self, count: int) -> list[ImageRecord]:
        """Return new rows for the first `count` images, or for all if there are fewer."""
        return as_records(self.files[:count], self.sizes[:count], "PNG" if self.drawn else "JPEG")


def miniature_work(images: int) -> Work:
    """Return the miniature and drawn scenes."""
    scenes = [draw_scene(WORLD, index).image for index in range(images)]
    return Work(load_models("miniature"), [_png(image) for image in scenes], [s.size for s in scenes], {}, True)


def official_work(folder: Path, sam: str, images: int, many_sizes: bool, device: torch.device | str = "cpu") -> Work:
    """Return models of official size with random weights, and photographs of `ONE_SIZE` or of many sizes.

    Each image gets the tagger's best tags and 20 given boxes, so that the work is that of real weights.
    """
    models = write_official_size(folder, sam, device=device)
    sizes = draw_sizes(images) if many_sizes else [ONE_SIZE] * images
    work = Work(models, photographs(sizes), sizes, {"tag": few_tags, "ground": given_boxes}, False)
    thresholds = folder / "thresholds.json"
    if not thresholds.is_file() and torch.cuda.is_available():  # a CPU would need minutes
        found = Annotators(models, "bfloat16").calibrate(work)
        atomic_write_text(thresholds, json.dumps(found))
    return work._replace(
        models=_with_thresholds(models, json.loads(thresholds.read_text())) if thresholds.is_file() else models
    )


def _with_thresholds(models: ModelSettings, found: dict[str, float]) -> ModelSettings:
    changes: dict[type, dict[str, float]] = {
        TaggerSettings: {"threshold": found["tag"]},
        DetectorSettings: {"box_threshold": found["box"]},
    }
    annotators = (one.model_copy(update=changes.get(type(one), {})) for one in models.annotators)
    return models.model_copy(update={"annotators": tuple(annotators)})


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def few_tags(row: ImageRecord) -> None:
    """Keep the tags with the highest scores, because random weights turn half of all tags on."""
    best = sorted(row.tags, key=lambda tag: -tag.score)[:TAGS_ON]
    row.tags = [tag for tag in row.tags if tag in best]


def given_boxes(row: ImageRecord) -> None:
    """Put boxes of 3/10 of the image's edges in place of the detector's."""
    corners = np.random.default_rng(zlib.crc32(row.key.encode())).uniform(0, 0.6, (BOXES, 2)) * (row.width, row.height)
    wide, high = 0.3 * row.width, 0.3 * row.height
    row.status, row.regions = "ok", [Region("thing", (x, y, x + wide, y + high)) for x, y in corners.tolist()]


class Annotators:
    """Tagger, detector and segmenter of one precision, whose techniques can be switched on and off.

    Args:
        models: their settings; files of weights must be there.
        compile: whether the image encoders of tagger and segmenter are compiled, which takes minutes.
        threads: CPU threads of each model; 0 for torch's default.
    """

    def __init__(self, models: ModelSettings, precision: Precision, compile: bool = False, threads: int = 0) -> None:
        compute = ComputeSettings(precision=precision, compile=compile, threads=threads)

        def make(kind: type[StageSettings]) -> Any:
            return models.annotator(kind).make(DecodeSettings(), compute)

        kinds = (TaggerSettings, DetectorSettings, SegmenterSettings)
        if compile:
            stages = [make(kind) for kind in kinds]
        else:
            with ThreadPoolExecutor() as pool:  # each reads gigabytes
                stages = [*pool.map(make, kinds)]
        self.tagger: Tagger = stages[0]
        self.detector: Detector = stages[1]
        self.segmenter: Segmenter = stages[2]
        self.stages: dict[str, Stage] = dict(zip(STAGES, stages, strict=True))
        self.batch_sizes = {name: stage.batch_size for name, stage in self.stages.items()}
        self._swaps = [*dino_swaps(self.detector.model.model), *sam_swaps(stages[2].sam.sam)]

    def use(self, batched: bool = True, fused: bool = True, pad_to: int = 1, larger: int = 1) -> Annotators:
        """Switch batches, fused attention, and padding of the detector's images; return these annotators.

        With batches, they are `larger` times as large as the settings say.
        """
        for name, stage in self.stages.items():
            stage.batch_size = larger * self.batch_sizes[name] if batched else 1
        use_attention(self._swaps, fused)
        self.detector.settings = self.detector.settings.model_copy(update={"pad_to": pad_to})
        return self

    def calibrate(self, work: Work, images: int = 4) -> dict[str, float]:
        """Return thresholds with which random weights find twice `TAGS_ON` tags and about `BOXES` boxes in an image.

        With thresholds of 0, each image would have thousands of tags and hundreds of boxes, whose handling in Python
        would be measured instead of the models.
        """
        rows = work.rows(images)
        self.tagger(Shard(0, rows))
        share = 2 * TAGS_ON / len(self.tagger.labels)
        tag = float(np.quantile([tag.score for row in rows for tag in row.tags], 1 - share))
        for row in rows:
            few_tags(row)
        self.detector(Shard(0, rows))
        best = [sorted((region.score for region in row.regions), reverse=True)[:BOXES] for row in rows]
        return {"tag": tag, "box": min(1.0, fmean(scores[-1] for scores in best if scores))}


def time_stages(
    stages: dict[str, Stage], rows: list[ImageRecord], warm: Callable[[], list[ImageRecord]], given: Given
) -> Seconds:
    """Run each stage over all rows, after a warm-up on the new rows of `warm`; return the seconds of each stage.

    Raises:
        RuntimeError: an image failed.
    """
    seconds: Seconds = {}
    for name, stage in stages.items():
        first = warm()
        for other, row in zip(rows, first, strict=False):
            row.tags, row.regions, row.status = list(other.tags), [Region(r.label, r.box) for r in other.regions], "ok"
        stage(Shard(0, first))
        synchronize()
        start = time.perf_counter()
        stage(Shard(0, rows))
        synchronize()
        seconds[name] = time.perf_counter() - start
        check(rows, name)
        for row in rows if name in given else ():
            given[name](row)
    return seconds


def check(rows: list[ImageRecord], name: str) -> None:
    """Raise `RuntimeError` if an image failed."""
    if failed := [row.reason for row in rows if row.status == "failed"]:
        raise RuntimeError(f"{name} failed for {len(failed)} images: {failed[0]}")


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def count_flops(reference: ReferenceLoop, row: ImageRecord, given: Given) -> dict[str, float]:
    """2 x multiply-adds of matrix products and convolutions for one image, by stage, in the reference loop."""
    found = {}
    for name, step in (("tag", reference.tag), ("ground", reference.ground), ("segment", reference.segment)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            step(row)
        found[name] = float(counter.get_total_flops())
        if name in given:
            given[name](row)
    return found


def drift(base: Sequence[ImageRecord], rows: Sequence[ImageRecord], drawn: bool) -> dict[str, float]:
    """Return how far findings are from those of `base`: tags, boxes (IoU at least 0.5, any label), masks of matched
    boxes; and, of drawn scenes, how good they are."""
    tags = boxes = true_tags = true_boxes = whole = named = 0
    masks = []
    score = Score()
    for one, two in zip(base, rows, strict=False):
        first, second = ({tag.label for tag in record.tags} for record in (one, two))
        tags, true_tags = tags + 2 * len(first & second), true_tags + len(first) + len(second)
        free = list(two.regions)
        for region in one.regions:
            near = {id(other): (iou(region.box, other.box), other.label == region.label) for other in free}
            best = max(free, key=lambda other: near[id(other)], default=None)
            if best is not None and near[id(best)][0] >= 0.5:
                free.remove(best)
                boxes += 2
                if region.rle and best.rle:
                    masks.append(coco_mask.iou([region.rle], [best.rle], [0])[0, 0])
        true_boxes += len(one.regions) + len(two.regions)
        if drawn:
            score.add_boxes(draw_scene(WORLD, int(two.key)), [(region.label, region.box) for region in two.regions])
            asked = {tag.label for tag in two.tags}
            named += sum(region.label in asked for region in two.regions)
            whole += len(two.regions)
    found: dict[str, float] = {"tags F1": tags / max(true_tags, 1), "boxes F1": boxes / max(true_boxes, 1)}
    if drawn:
        found["labels that are tags"] = named / max(whole, 1)
    if masks:
        found["mask IoU"] = fmean(masks)
    if drawn:
        things = score.things
        found["things F1"] = 2 * things.matched / max(things.found + things.true, 1)
    return found


def detector_pixels(sizes: Sequence[Size], pad_to: int = 1) -> float:
    """Return the mean pixels of the detector's input as a multiple of those of an image of `ONE_SIZE`, not padded."""

    def pixels(size: Size, step: int) -> int:
        height, width = get_size_with_aspect_ratio(size[::-1], 800, 1333)
        return -(-height // step) * step * -(-width // step) * step

    return fmean(pixels(size, pad_to) for size in sizes) / pixels(ONE_SIZE, 1)
