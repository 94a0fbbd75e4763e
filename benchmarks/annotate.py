"""Images per second of tagging, grounding and segmenting: the reference loop, and technique by technique what the
stages make of it. Same weights, same images, one run; ratios, and beside them how far the results move.

    python -m benchmarks.annotate                                    # the miniature on drawn scenes
    python -m benchmarks.annotate --size vit_h --images 64           # official sizes, seeded random weights
"""

from __future__ import annotations

import argparse
import gc
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.chain import (
    STAGES,
    Annotators,
    Precision,
    Work,
    count_flops,
    drift,
    miniature_work,
    official_work,
    time_stages,
)
from benchmarks.official import SAMS
from benchmarks.reference import ReferenceLoop, Seconds
from pad_pipeline.records import ImageRecord
from pad_pipeline.weights import cache_folder

H200_TFLOPS = 790
"""Dense bfloat16 that an H200 reaches in large matrix products, measured; its data sheet says 989."""


class Setup(NamedTuple):
    """One row: what is switched on."""

    name: str
    precision: Precision = "float32"
    batched: bool = False
    fused: bool = False
    compile: bool = False
    pad_to: int = 1
    larger: int = 1
    """By how much batches are larger than the settings say."""


WATERFALL = [
    Setup("stages, float32, batch 1"),
    Setup("+ bfloat16", "bfloat16"),
    Setup("+ batches", "bfloat16", batched=True),
    Setup("+ fused attention", "bfloat16", batched=True, fused=True),
    Setup("+ compile", "bfloat16", batched=True, fused=True, compile=True),
    Setup("float32, batches, fused attention", batched=True, fused=True),
]
"""Cumulative, but for the last, which is what a build does without a GPU."""
FOUND = ("tags F1", "boxes F1", "labels that are tags", "mask IoU", "things F1")
"""The columns of `drift`."""


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
    work = (
        miniature_work(options.images)
        if options.size == "miniature"
        else official_work(options.folder or cache_folder() / "benchmark", options.size, options.images, False)
    )
    if options.batch:
        for part in work.models.annotators:
            part.batch_size = options.batch
    reference = ReferenceLoop(work.models, device)
    flops = count_flops(reference, work.rows(1)[0], work.given)  # and warm
    few = work.rows(min(options.images, options.reference_images))
    base = Row("reference loop", reference(few, work.given), few)
    print(f"{base.name}: {base.seconds}", flush=True)
    del reference
    rows = []
    for setup in WATERFALL:
        if (setup.compile and not options.compile) or (options.rows and setup.name not in options.rows):
            continue
        rows.append(measure(setup, work, options.images, options.threads))
        print(f"{setup.name}: {rows[-1].seconds}", flush=True)
        gc.collect()
    text = "\n".join(report(base, rows, flops, options, device))
    print(text)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(text + "\n", "utf-8")


def measure(setup: Setup, work: Work, images: int, threads: int) -> Row:
    """Build the stages as a setup wants them, and time each over all images, after a warm-up on some."""
    annotators = Annotators(work.models, setup.precision, setup.compile, threads).use(setup.batched, setup.fused)
    # A GPU chooses its kernels for each shape anew; a CPU has nothing to warm but its memory.
    whole_batch = torch.cuda.is_available() or setup.compile
    warm = max(annotators.batch_sizes.values()) if whole_batch and setup.batched else 1
    rows = work.rows(images)
    return Row(setup.name, time_stages(annotators.stages, rows, lambda: work.rows(warm), work.given), rows)


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
        + f"; commit {commit()}; `python -m benchmarks.annotate {_command(options)}`.",
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
        + " | ".join(FOUND)
        + " |",
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
        found = drift(base.records, row.records, options.size == "miniature")
        cells += [f"{found[name]:.4f}" if name in found else "" for name in FOUND]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Return the short hash of the checkout's commit, or `unknown`."""
    if not shutil.which("git"):
        return "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _command(options: argparse.Namespace) -> str:
    said = [f"--size {options.size}", f"--images {options.images}"]
    said += [f"--reference-images {options.reference_images}"] if options.reference_images < options.images else []
    said += ["--compile"] if options.compile else []
    return " ".join([*said, *(["--rows", *(repr(row) for row in options.rows)] if options.rows else [])])


if __name__ == "__main__":
    main()
