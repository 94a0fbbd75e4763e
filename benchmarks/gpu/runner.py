"""Runs the parts of the GPU benchmark one after another, each in a process of its own that is killed at its limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.sheet import FINISHED, RUNNING, Sheet, end_sheet, read_sheet
from pad_pipeline.storage import atomic_write_text

GRACE = 5.0
"""Seconds between the deadline, after which a part begins nothing new, and its end by force."""


class Job(NamedTuple):
    """The inputs of a part."""

    sheet: Sheet
    out: Path
    """Folder of the results, where a part finds those of earlier parts."""
    work: Path
    """Folder for weights and images, which all parts share."""
    smoke: bool
    """Whether everything is small, so that the code is tried without a GPU."""


class Part(NamedTuple):
    """One part of the benchmark."""

    name: str
    title: str
    seconds: float
    """Limit of the part's time, of `TOTAL` seconds. Time that earlier parts leave is added to it."""
    measure: Callable[[Job], None]


def run_parts(
    parts: Sequence[Part], out: Path, work: Path, end: float, smoke: bool = False, heading: str = ""
) -> dict[str, str]:
    """Run parts until the time `end`, write their results and `summary.md` into `out`; return each part's end by name.

    An exception, the death of a part's process, or its limit ends that part alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    context, began = _context(), time.time()
    deadline, scale = began, (end - began) / sum(part.seconds for part in parts)
    ends: dict[str, str] = {}
    for part in parts:
        deadline += part.seconds * scale
        print(f"== {part.name}: until {deadline - began:.0f} s of {end - began:.0f} s", flush=True)
        before = os.times()
        process = context.Process(target=_work, args=(part, out, work, smoke, deadline - min(GRACE, part.seconds / 4)))
        process.start()
        process.join(max(0.1, deadline - time.time()))
        if process.is_alive():
            _kill(process)
            end_sheet(out, part.name, part.title, f"cut at its limit, {time.time() - began:.0f} s after the start")
        elif (read_sheet(out, part.name) or {"state": RUNNING})["state"] == RUNNING:
            end_sheet(out, part.name, part.title, f"its process died (exit code {process.exitcode})")
        ends[part.name] = (read_sheet(out, part.name) or {})["state"]
        _summarize(parts, out, heading, time.time() - began)
        used = os.times().children_user - before.children_user
        print(f"== {part.name}: {ends[part.name]}, {used:.1f} s of CPU time", flush=True)
    return ends


def _context() -> Any:
    """Return the way to start processes. A fork has everything imported; but where it does not see the GPU, because
    something initialized CUDA in this process, each process imports everything anew."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_use_gpu)
    process.start()
    process.join(60)
    if process.exitcode == 0:
        return fork
    if process.is_alive():
        _kill(process)
    print("A forked process can't use the GPU: each part starts Python anew.", flush=True)
    return multiprocessing.get_context("spawn")


def _use_gpu() -> None:
    import torch

    if torch.cuda.is_available() or Path("/dev/nvidiactl").exists():
        torch.ones(8, device="cuda").sum().item()


def _work(part: Part, out: Path, work: Path, smoke: bool, deadline: float) -> None:
    os.setpgid(0, 0)  # a group of its own, so that a kill reaches the processes that a compiler starts
    sheet = Sheet(out, part.name, part.title, deadline)
    try:
        part.measure(Job(sheet, out, work, smoke))
        sheet.finish()
    except Exception as error:
        traceback.print_exc()
        sheet.finish(f"failed with {type(error).__name__}: {str(error)[:500]}")


def _kill(process: Any) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:  # it had no group of its own yet
        process.kill()
    process.join(10)


def _summarize(parts: Sequence[Part], out: Path, heading: str, seconds: float) -> None:
    """Write all results so far on one page, the ends of the parts first."""
    lines = ["# The GPU benchmark", "", f"{heading} {seconds:.0f} s so far.".strip(), ""]
    lines += ["| part | seconds | end | not measured |", "| --- | --- | --- | --- |"]
    pages = []
    for part in parts:
        if found := read_sheet(out, part.name):
            left_out = len(found["failures"]) or ""
            lines.append(f"| {part.name} | {found['seconds']:.0f} | {found['state']} | {left_out} |")
            pages.append((out / f"{part.name}.md").read_text("utf-8"))
    atomic_write_text(out / "summary.md", "\n".join([*lines, "", *pages]))


def all_well(out: Path, ends: dict[str, str]) -> bool:
    """Return whether every part came to its end without a failure."""
    return all(end == FINISHED and not (read_sheet(out, name) or {})["failures"] for name, end in ends.items())
