"""Part `card`: the rates of this card that bound everything else, and the weights that later parts use."""

from __future__ import annotations

import platform
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.gpu.common import device, free_memory, median_seconds, on_gpu, peak_gib, work_of
from benchmarks.gpu.runner import Job

PRODUCT = "product, bfloat16, TFLOP/s"
"""Name of the rate that rooflines use."""


def measure(job: Job) -> None:
    """Measure matrix products, copies and transfers; draw weights and calibrate thresholds, once."""
    sheet, edge = job.sheet, 64 if job.smoke else 8192
    sheet.attempt("machine", lambda: sheet.note(_machine() + "."))
    for dtype in (torch.bfloat16, torch.float32):
        name = f"product, {str(dtype).removeprefix('torch.')}, TFLOP/s"
        sheet.attempt(name, partial(_product, job, name, dtype, edge))
    sheet.attempt("copies", partial(_copies, job, 2**16 if job.smoke else 2**31))
    sheet.attempt("launch", partial(_launches, job))
    sheet.attempt("weights", partial(_weights, job))


def _machine() -> str:
    facts = [f"{name} {version(name)}" for name in ("torch", "transformers")] + [f"Python {platform.python_version()}"]
    facts.append(f"{torch.get_num_threads()} CPU threads")
    if not on_gpu():
        return ", ".join(["no GPU", *facts])
    found = torch.cuda.get_device_properties(0)
    facts = [found.name, f"{found.total_memory / 2**30:.0f} GiB", f"CUDA {torch.version.cuda}", *facts]
    asked = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
    done = subprocess.run(["nvidia-smi", asked, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return ", ".join([*facts, f"driver, clocks, power limit: {done.stdout.strip() or 'unknown'}"])


def _product(job: Job, name: str, dtype: torch.dtype, edge: int) -> None:
    torch.set_float32_matmul_precision("highest")
    one, two = (torch.randn(edge, edge, device=device(), dtype=dtype) for _ in range(2))
    seconds = median_seconds(lambda: one @ two, repeats=20)
    job.sheet.row("Roofline", what=name, rate=2 * edge**3 / seconds / 1e12)
    job.sheet.row("Details", what=name, size=f"{edge} x {edge} x {edge}", seconds=seconds)


def _copies(job: Job, size: int) -> None:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source))
    job.sheet.row("Roofline", what="copy on the device, GB/s read and written", rate=2 * size / seconds / 1e9)
    host = torch.full((size // 8,), 7, dtype=torch.uint8)
    on_device = target[: len(host)]
    for kind, memory in (("pageable", host), ("pinned", host.pin_memory() if on_gpu() else host)):
        sent = median_seconds(partial(on_device.copy_, memory, non_blocking=True), repeats=5)
        job.sheet.row("Roofline", what=f"host to device, {kind}, GB/s", rate=len(host) / sent / 1e9)
        received = median_seconds(partial(memory.copy_, on_device, non_blocking=True), repeats=5)
        job.sheet.row("Roofline", what=f"device to host, {kind}, GB/s", rate=len(host) / received / 1e9)


def _launches(job: Job) -> None:
    """Measure how many small kernels Python can launch: below that rate the CPU bounds the GPU."""
    small = torch.zeros(1024, device=device())

    def thousand() -> None:
        for _ in range(1000):
            small.add_(1)

    job.sheet.row("Roofline", what="small kernels, thousands a second", rate=1 / median_seconds(thousand, repeats=5))


def _weights(job: Job) -> None:
    free_memory()
    work_of(job, 8)
    free = torch.cuda.mem_get_info()[0] / 2**30 if on_gpu() else 0.0
    size = sum(path.stat().st_size for path in Path(job.work).glob("**/*.safetensors"))
    job.sheet.row("Weights", folder=str(job.work), GB=size / 1e9, peak_GiB=peak_gib(), free_GiB=free)
