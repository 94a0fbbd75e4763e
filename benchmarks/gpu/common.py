"""What the parts of the GPU benchmark share: the work, timing, memory, and traces of torch's profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.chain import Work, miniature_work, official_work
from benchmarks.gpu.runner import Job
from benchmarks.gpu.sheet import read_sheet

SAM = "vit_h"
LLM = "7b"
"""Size of the LLM and its vision tower, and the folder of their configurations, see `benchmarks.stage1.SIZES`."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace's events that keep the GPU busy."""


def on_gpu() -> bool:
    """Return whether there is a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the GPU, or the CPU without one."""
    return torch.device("cuda" if on_gpu() else "cpu")


def work_of(job: Job, images: int, many_sizes: bool = False) -> Work:
    """Return the work of a part: models of official size and photographs, or the miniature and few scenes."""
    if job.smoke:
        return miniature_work(min(images, 2))
    try:
        return official_work(job.work, SAM, images, many_sizes, device())
    except Exception:  # a network that can't be drawn on the GPU is drawn on the CPU, which takes longer
        traceback.print_exc()
        job.sheet.note("The weights could not be drawn on the GPU; they were drawn on the CPU.")
        return official_work(job.work, SAM, images, many_sizes)


def roofline(job: Job) -> dict[str, float]:
    """Return the rates of the card that the part `card` measured, by name; empty if it has none."""
    found = read_sheet(job.out, "card") or {"tables": {}}
    return {row["what"]: row["rate"] for row in found["tables"].get("Roofline", [])}


def median_seconds(work: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
    """Return the median time of a call, measured by CUDA events where there is a GPU."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        if on_gpu():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def free_memory() -> None:
    """Give cached memory of the GPU back, and begin its peak anew."""
    import gc

    gc.collect()
    if on_gpu():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Return the most memory that tensors took on the GPU since `free_memory`, in GiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if on_gpu() else 0.0


class Traced(NamedTuple):
    """What torch's profiler saw of a call."""

    seconds: float
    events: list[dict[str, Any]]
    """Events with a duration, as in a Chrome trace: `name`, `cat`, `ts` and `dur` in microseconds, `args`."""

    def work(self) -> list[dict[str, Any]]:
        """Return the events that keep the GPU busy; without a GPU, the operations on the CPU."""
        kinds = ON_GPU if on_gpu() else ("cpu_op",)
        return sorted((event for event in self.events if event.get("cat") in kinds), key=lambda event: event["ts"])

    def operations(self, begin: str) -> dict[str, int]:
        """Return how often each of torch's operations ran whose name begins with `begin`."""
        names = [event["name"] for event in self.events if event.get("cat") == "cpu_op"]
        return {name: names.count(name) for name in sorted({*names}) if name.startswith(begin)}

    def gaps(self) -> tuple[float, list[float]]:
        """Return the seconds in which the GPU was busy, and the lengths of its pauses between two events."""
        busy, pauses, end = 0.0, [], None
        for event in self.work():
            start, stop = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            if end is not None and start > end:
                pauses.append(start - end)
            busy += max(0.0, stop - (start if end is None else max(start, end)))
            end = stop if end is None else max(end, stop)
        return busy, pauses

    def largest(self, count: int) -> Iterable[tuple[str, int, float]]:
        """Yield the name of each of the kernels that took most time, its number of calls, and its seconds."""
        by_name: dict[str, list[float]] = {}
        for event in self.work():
            by_name.setdefault(event["name"], []).append(event["dur"] / 1e6)
        ranked = sorted(by_name.items(), key=lambda entry: -sum(entry[1]))
        return ((name, len(times), sum(times)) for name, times in ranked[:count])


def traced(work: Callable[[], object], operations: bool = True) -> Traced:
    """Call `work` under torch's profiler. Recording `operations` of torch slows the host down; kernels always count."""
    activities = [ProfilerActivity.CUDA] if on_gpu() else []
    if operations or not activities:
        activities.append(ProfilerActivity.CPU)
    if on_gpu():
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        work()
        if on_gpu():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(Path(folder, "trace.json")))
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    return Traced(seconds, [event for event in events if "dur" in event and "ts" in event])


def short(kernel: str, length: int = 90) -> str:
    """Return a kernel's name without template arguments that nobody reads, in at most `length` characters."""
    name = kernel.removeprefix("void ").replace("at::native::", "")
    return name if len(name) <= length else f"{name[: length - 3]}..."
