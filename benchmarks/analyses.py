"""Time and memory of the analyses by number of images, at 576 tokens each: `python -m benchmarks.analyses`.

Drawn scenes with their exact regions, a random CLIP of 336 pixels in patches of 14, a random projector, the miniature's
LLM: the numbers mean nothing, their cost does. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import NAME, member_reference
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.training.projector import build_projector, save_projector
from pad_pipeline.workflows.learning.analyze import analyze
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.build import import_coco
from pad_pipeline.workflows.runs.options import RunOptions

VIEW = View(size=336, patch=14, fit="crop")
WIDTH = 48


def write_subject(folder: Path, words: int) -> None:
    """A tower and a projector to an LLM whose embeddings have `words` numbers."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=VIEW.size, patch_size=VIEW.patch, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=3, num_attention_heads=4,
    )  # fmt: skip
    tower = folder / "tower"
    CLIPVisionModel(config).save_pretrained(tower)
    square = {"height": VIEW.size, "width": VIEW.size}
    CLIPImageProcessorPil(size={"shortest_edge": VIEW.size}, crop_size=square).save_pretrained(tower)
    save_projector(build_projector("mlp", WIDTH, words), folder / "mm_projector.bin")


def measure(home: Path, names: list[str], limit: int) -> None:
    """In a process of its own: print seconds and megabytes."""
    subject = Subject(home / "mm_projector.bin", str(home / "tower"), member_reference(NAME, "llm"), -2)
    began = time.monotonic()
    found = analyze(names, subject, str(home / "shards"), AnalysisSettings(), None, limit)
    assert found["images"] == limit
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1000
    print(json.dumps([time.monotonic() - began, peak]))


def main() -> None:
    """Draw, import, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(Path(asked.measure[0]), asked.measure[1].split(","), int(asked.measure[2]))
        return
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        models = load_models(NAME)
        world = write_world(Path(home, "world"), max(asked.images))
        source = CocoSource(world.instances, world.images, world.llava)
        shards = Path(home, "shards")
        import_coco(source, shards, models.llm, models.decode, VIEW, RunOptions())
        write_subject(Path(home), open_shards(shards).run.embedding_width)
        print(f"{VIEW.grid**2} tokens an image, on {os.cpu_count()} CPU cores.\n")
        print("| analyses | images | seconds | per second | peak MB |\n| --- | --- | --- | --- | --- |")
        for names in (",".join(STUDIES), *(STUDIES if len(asked.images) > 1 else ())):
            for number in asked.images if "," in names else asked.images[:1]:
                command = [sys.executable, "-m", "benchmarks.analyses", "--measure", home, names, str(number)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, megabytes = json.loads(done.stdout)
                shown = "all" if "," in names else names
                print(
                    f"| {shown} | {number:,} | {seconds:.1f} | {number / seconds:.1f} | {megabytes:.0f} |", flush=True
                )


if __name__ == "__main__":
    main()
