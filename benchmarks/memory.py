"""Memory that the models of a build want at official size: `python -m benchmarks.memory`. For each model the bytes of
its weights as its stage holds them, and the peak of the tensors beside them while one image goes through.

The weights are random. Tensors are counted by torch's profiler on the CPU; what a GPU's libraries take for themselves
comes on top. `pad doctor` holds a GPU against the sum (`ALL_MODELS` in workflows/checks/machine.py).
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks.chain import few_tags
from benchmarks.official import write_official_size
from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region, Shard
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.segment import Segmenter, SegmenterSettings
from pad_pipeline.stages.tag import Tagger, TaggerSettings
from pad_pipeline.weights import cache_folder

SIZE = (1500, 900)
"""Of the image: the detector gets 1333 x 800, the largest that it takes."""
BOXES = 64
"""Of the image: as many as go through the mask decoder at once."""
PRECISIONS = ("float32", "bfloat16")


class Measured(NamedTuple):
    """Bytes of one model."""

    weights: int
    beside: int
    """The peak of other tensors."""


def models(folder: Path, precision: Any) -> Iterator[tuple[str, Callable[[], Stage]]]:
    """Each model of the presets `paper` and `plus`, and how its stage is made."""
    compute, decoding = ComputeSettings(precision=precision), DecodeSettings()
    paper = write_official_size(folder, "vit_h", "swin_b")
    plus = write_official_size(folder, "vit_h", "swin_b", "ram_plus")
    yield "RAM, Swin-L 384", lambda: Tagger(paper.annotator(TaggerSettings), decoding, compute)
    yield "RAM++, Swin-L 384", lambda: Tagger(plus.annotator(TaggerSettings), decoding, compute)
    yield "Grounding DINO base (Swin-B)", lambda: Detector(paper.annotator(DetectorSettings), decoding, compute)
    yield "SAM ViT-H", lambda: Segmenter(paper.annotator(SegmenterSettings), decoding, compute)


def weight_bytes(stage: Stage) -> int:
    """The parameters and buffers of all networks that a stage holds."""
    held = [getattr(stage, "network", None), getattr(stage, "model", None), getattr(stage, "sam", None)]
    networks = [getattr(one, "model", None) or getattr(one, "sam", None) or one for one in held if one is not None]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` has at once, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(Path(folder, "trace.json")))
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    steps = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    now = most = 0
    for _, size in steps:
        now += size
        most = max(most, now)
    return most


def measured(stage: Stage, row: ImageRecord) -> Measured:
    """A stage with one image, which must come through."""
    beside = peak_of(lambda: stage(Shard(0, [row])))
    if row.status == "failed":
        raise RuntimeError(f"{stage.name} failed: {row.reason}")
    return Measured(weight_bytes(stage), beside)


def image_record() -> ImageRecord:
    """An image that is decoded already."""
    stream = io.BytesIO()
    Image.effect_noise(SIZE, 80).convert("RGB").save(stream, "JPEG")
    return ImageRecord(
        "0", "0", key="0", data=stream.getvalue(), format="JPEG", width=SIZE[0], height=SIZE[1], status="ok"
    )


def prepared(stage: Stage, tags: list[Any]) -> ImageRecord:
    """The image as the stages before leave it."""
    row = image_record()
    row.tags = list(tags)
    if stage.name == "segment":
        row.regions = [Region("thing", (8.0 * n, 4.0 * n, 8.0 * n + 300, 4.0 * n + 200)) for n in range(BOXES)]
    return row


def main() -> None:
    """Measure each model in both precisions, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="where models of official size are kept")
    asked = parser.parse_args()
    folder = asked.folder or cache_folder() / "benchmark"
    found: dict[str, dict[str, Measured]] = {}
    for precision in PRECISIONS:
        tags: list[Any] = []
        for name, make in models(folder, precision):
            stage = make()
            row = prepared(stage, tags)
            found.setdefault(name, {})[precision] = measured(stage, row)
            print(name, precision, found[name][precision], flush=True)
            if stage.name == "tag":
                few_tags(row)
                tags = row.tags
            del stage
    print("\n".join(report(found)))


def report(found: dict[str, dict[str, Measured]]) -> list[str]:
    """The table as Markdown. Stages of one worker take turns: the sum is all weights and the largest peak."""
    lines = [
        f"{date.today()}; {platform.machine()}, no GPU; torch {torch.__version__}; `python -m benchmarks.memory`.",
        f"Random weights, one image of {SIZE[0]} x {SIZE[1]} with {BOXES} boxes; GB are 10^9 bytes.",
        "",
        "| model | weights, float32 | beside them | weights, bfloat16 | beside them |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, by in found.items():
        cells = [f"{size / 1e9:.2f}" for precision in PRECISIONS for size in by[precision]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for preset, left_out in (("paper", "RAM++"), ("plus", "RAM,")):
        cells = []
        for precision in PRECISIONS:
            held = [by[precision] for name, by in found.items() if not name.startswith(left_out)]
            weights, peak = sum(one.weights for one in held), max(one.beside for one in held)
            cells += [f"{weights / 1e9:.2f}", f"{peak / 1e9:.2f} (in all {(weights + peak) / 1e9:.2f})"]
        lines.append(f"| **all of `{preset}`** | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
