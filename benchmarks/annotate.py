"""Images per second of tagging, grounding and segmenting: the reference loop, and technique by technique what the
stages make of it. Same weights, same images, one run; ratios, and beside them how far the results move.

    python -m benchmarks.annotate                                    # the miniature on drawn scenes
    python -m benchmarks.annotate --size vit_h --images 64           # official sizes, seeded random weights
"""

from __future__ import annotations

import argparse
import io
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoBiMultiHeadAttention

from benchmarks.official import SAMS, TAGS_ON, write_official_size
from benchmarks.reference import ReferenceLoop, Seconds, unfuse_sam
from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.score import Score
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.records import ImageRecord, Region, Shard
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.segment import Segmenter, SegmenterSettings
from pad_pipeline.stages.tag import Tagger, TaggerSettings
from pad_pipeline.weights import cache_folder
from pad_pipeline.workflows.models.settings import ModelSettings, load_models

STAGES = ("tag", "ground", "segment")
BOXES = 20
"""Of each image, at official size, where random weights find nothing of their own."""
WORLD = 940_000
"""Seed of the drawn scenes: not the training's, nor the evaluation's."""
H200_TFLOPS = 790
"""Dense bfloat16 that an H200 reaches in large matrix products, measured; its data sheet says 989."""


class Setup(NamedTuple):
    """One row: what is switched on."""

    name: str
    precision: str = "float32"
    batched: bool = False
    fused: bool = False
    compile: bool = False


WATERFALL = [
    Setup("stages, float32, batch 1"),
    Setup("+ bfloat16", "bfloat16"),
    Setup("+ batches", "bfloat16", batched=True),
    Setup("+ fused attention", "bfloat16", batched=True, fused=True),
    Setup("+ compile", "bfloat16", batched=True, fused=True, compile=True),
    Setup("float32, batches, fused attention", batched=True, fused=True),
]
"""Cumulative, but for the last, which is what a build does without a GPU."""


class Row(NamedTuple):
    """What came of a setup."""

    name: str
    seconds: Seconds
    records: list[ImageRecord]


def main() -> None:
    """Measure, print and, if wanted, write the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models, rows_of, given = _miniature(options.images) if options.size == "miniature" else _official(options)
    reference = ReferenceLoop(models, device)
    flops = count_flops(reference, rows_of(1), given)  # and warm
    few = rows_of(min(options.images, options.reference_images))
    base = Row("reference loop", reference(few, given), few)
    print(f"{base.name}: {base.seconds}", flush=True)
    del reference
    rows = []
    for setup in WATERFALL:
        if (setup.compile and not options.compile) or (options.rows and setup.name not in options.rows):
            continue
        rows.append(measure(setup, models, rows_of(options.images), rows_of, given, options.threads))
        print(f"{setup.name}: {rows[-1].seconds}", flush=True)
    text = "\n".join(report(base, rows, flops, options, device))
    print(text)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(text + "\n", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["miniature", *SAMS], default="miniature", help="which models")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--reference-images", type=int, default=10**6, help="fewer for the slow reference loop")
    parser.add_argument("--batch", type=int, default=0, help="images in a batch; 0 for the settings' own")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--rows", nargs="*", default=[], help="names of rows; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", type=float, default=H200_TFLOPS, help="TFLOP/s of the roofline")
    parser.add_argument("--folder", type=Path, default=None, help="where models of official size are kept")
    parser.add_argument("--out", default="", help="write the table there")
    return parser.parse_args()


Given = dict[str, Callable[[ImageRecord], None]]
RowsOf = Callable[[int], list[ImageRecord]]


def _miniature(images: int) -> tuple[ModelSettings, RowsOf, Given]:
    scenes = [draw_scene(WORLD, index).image for index in range(images)]
    return load_models("miniature"), lambda count: [_record(i, image) for i, image in enumerate(scenes[:count])], {}


def _official(options: argparse.Namespace) -> tuple[ModelSettings, RowsOf, Given]:
    """Images of 640 x 480, so that the detector gets 1066 x 800; the tagger's best tags; 20 given boxes."""
    models = write_official_size(options.folder or cache_folder() / "benchmark", options.size)
    if options.batch:
        for part in models.annotators:
            part.batch_size = options.batch
    images = []
    for index in range(options.images):
        small = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        images.append(Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC))

    def fixed(row: ImageRecord) -> None:
        corners = np.random.default_rng(int(row.key)).uniform(0, 0.6, (BOXES, 2)) * (row.width, row.height)
        row.status, row.regions = "ok", [Region("thing", (x, y, x + 200, y + 150)) for x, y in corners.tolist()]

    return (
        models,
        lambda count: [_record(i, image, "JPEG") for i, image in enumerate(images[:count])],
        {"tag": few_tags, "ground": fixed},
    )


def _record(number: int, image: Image.Image, kind: str = "PNG") -> ImageRecord:
    stream = io.BytesIO()
    image.save(stream, kind)
    name = f"{number:05d}"
    return ImageRecord(
        name, name, key=name, data=stream.getvalue(), format=kind, width=image.width, height=image.height
    )


def few_tags(row: ImageRecord) -> None:
    """At official size, random weights turn half of all tags on: only the best stay."""
    best = sorted(row.tags, key=lambda tag: -tag.score)[:TAGS_ON]
    row.tags = [tag for tag in row.tags if tag in best]


def measure(
    setup: Setup, models: ModelSettings, rows: list[ImageRecord], rows_of: RowsOf, given: Given, threads: int
) -> Row:
    """Each stage over all rows, after a warm-up on some."""
    seconds: Seconds = {}
    for name, stage in build_stages(setup, models, threads):
        # A GPU chooses its kernels for each shape anew; a CPU has nothing to warm but its memory.
        warm = rows_of(min(len(rows), stage.batch_size if torch.cuda.is_available() or setup.compile else 1))
        for other, row in zip(rows, warm, strict=False):
            row.tags, row.regions, row.status = list(other.tags), [Region(r.label, r.box) for r in other.regions], "ok"
        stage(Shard(0, warm))
        synchronise()
        start = time.perf_counter()
        stage(Shard(0, rows))
        synchronise()
        seconds[name] = time.perf_counter() - start
        if failed := [row.reason for row in rows if row.status == "failed"]:
            raise RuntimeError(f"{name} failed: {failed[0]}")
        for row in rows if name in given else ():
            given[name](row)
        del stage
    return Row(setup.name, seconds, rows)


def build_stages(setup: Setup, models: ModelSettings, threads: int) -> Iterator[tuple[str, Stage]]:
    """The three stages, one after another, as a setup wants them."""
    compute = ComputeSettings(precision=setup.precision, compile=setup.compile, threads=threads)
    one = {} if setup.batched else {"batch_size": 1}
    yield "tag", Tagger(models.annotator(TaggerSettings).model_copy(update=one), DecodeSettings(), compute)
    detector = Detector(models.annotator(DetectorSettings).model_copy(update=one), DecodeSettings(), compute)
    segmenter = Segmenter(models.annotator(SegmenterSettings).model_copy(update=one), DecodeSettings(), compute)
    if not setup.fused:
        unfuse_dino(detector.model.model)
        unfuse_sam(segmenter.sam.sam)  # type: ignore[union-attr]
    yield "ground", detector
    yield "segment", segmenter


def unfuse_dino(model: Any) -> None:
    """transformers' attention between image and text in place of the fused one."""
    for layer in model.model.encoder.layers:
        fused = layer.fusion_layer.attn
        plain = GroundingDinoBiMultiHeadAttention(model.config)
        for name, module in fused.named_children():
            setattr(plain, name, module)
        layer.fusion_layer.attn = plain.eval()


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def count_flops(reference: ReferenceLoop, rows: list[ImageRecord], given: Given) -> dict[str, float]:
    """2 x multiply-adds of matrix products and convolutions for one image, by stage, in the reference loop."""
    (row,) = rows
    found = {}
    for name, step in (("tag", reference.tag), ("ground", reference.ground), ("segment", reference.segment)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            step(row)
        found[name] = float(counter.get_total_flops())
        if name in given:
            given[name](row)
    return found


def report(
    base: Row, rows: list[Row], flops: dict[str, float], options: argparse.Namespace, device: torch.device
) -> list[str]:
    """The table as Markdown."""
    total = sum(flops.values())
    parts = ", ".join(f"{name} {flops[name] / 1e9:.1f}" for name in STAGES)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    lines = [
        f"# Annotation, {options.size}: {options.images} images",
        "",
        f"{date.today()}; {_processor()}, {options.threads} threads, {gpu}; "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        + f"; commit {_commit()}; `python -m benchmarks.annotate {_command(options)}`.",
        "",
        f"GFLOP an image: {parts}; {total / 1e9:.1f} in all"
        + (
            f"; roofline at {options.peak:g} TFLOP/s: {options.peak * 1e12 / total:.0f} img/s."
            if device.type == "cuda"
            else "."
        ),
        "",
        "| | tag img/s | ground img/s | segment img/s | chain img/s | x reference | TFLOP/s | "
        + ("of roofline | " if device.type == "cuda" else "")
        + "tags F1 | boxes F1 | labels that are tags | mask IoU | things F1 |",
    ]
    lines.append("|" + " --- |" * (lines[-1].count("|") - 1))
    reference_rate = len(base.records) / sum(base.seconds.values())
    for row in [base, *rows]:
        rates = {name: len(row.records) / row.seconds[name] for name in STAGES}
        chain = len(row.records) / sum(row.seconds.values())
        cells = [row.name, *(f"{rates[name]:.3g}" for name in STAGES), f"**{chain:.3g}**"]
        cells += [f"{chain / reference_rate:.2f}", f"{chain * total / 1e12:.3f}"]
        if device.type == "cuda":
            cells.append(f"{chain * total / options.peak / 1e12:.0%}")
        lines.append("| " + " | ".join([*cells, *drift(base, row, options.size == "miniature")]) + " |")
    return lines


def drift(base: Row, row: Row, drawn: bool) -> list[str]:
    """How far a row's findings are from the reference loop's: tags, boxes (IoU at least 0.5, any label), masks of
    matched boxes; and, of drawn scenes, how good they are."""
    tags = boxes = found = true_tags = true_boxes = 0
    whole = named = 0
    masks = []
    score = Score()
    for one, two in zip(base.records, row.records, strict=False):
        first, second = ({tag.label for tag in record.tags} for record in (one, two))
        tags, true_tags = tags + 2 * len(first & second), true_tags + len(first) + len(second)
        free = list(two.regions)
        for region in one.regions:
            near = {id(other): (iou(region.box, other.box), other.label == region.label) for other in free}
            best = max(free, key=lambda other: near[id(other)], default=None)
            if best is not None and near[id(best)][0] >= 0.5:
                free.remove(best)
                boxes += 2
                masks.append(coco_mask.iou([region.rle], [best.rle], [0])[0, 0])
        true_boxes += len(one.regions) + len(two.regions)
        found += len(two.regions)
        if drawn:
            score.add_boxes(draw_scene(WORLD, int(two.key)), [(region.label, region.box) for region in two.regions])
            asked = {tag.label for tag in two.tags}
            named += sum(region.label in asked for region in two.regions)
            whole += len(two.regions)
    things = score.things
    return [
        f"{tags / max(true_tags, 1):.4f}",
        f"{boxes / max(true_boxes, 1):.4f}",
        f"{named / max(whole, 1):.4f}" if drawn else "",
        f"{fmean(masks):.4f}" if masks else "",
        f"{2 * things.matched / max(things.found + things.true, 1):.4f}" if drawn else "",
    ]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _command(options: argparse.Namespace) -> str:
    said = [f"--size {options.size}", f"--images {options.images}"]
    said += [f"--reference-images {options.reference_images}"] if options.reference_images < options.images else []
    said += ["--compile"] if options.compile else []
    return " ".join([*said, *(["--rows", *(repr(row) for row in options.rows)] if options.rows else [])])


if __name__ == "__main__":
    main()
