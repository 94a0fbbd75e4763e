"""What 100 million images cost the commands that read shards: `python -m benchmarks.scale_reading`.

The start of a training, and stats, verify, filter and report, on made runs of two sizes each, extrapolated to 200,000
shards of 512 images. Each measurement runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.made_runs import SHARD, write_indexes, write_names, write_run
from benchmarks.plan import peak_megabytes
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.site import write_report
from pad_pipeline.shards import reader
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.stats import ShortStatistics, read_statistics
from pad_pipeline.sources.selection import Selection
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.threads import OverShards
from pad_pipeline.training.order import SampleOrder
from pad_pipeline.verify import verify_run
from pad_pipeline.workflows.engine.over_shards import ReadOptions, over_shards

ALL = 200_000
"""Shards of 100 million images."""
CORES = 64
FIRST, LATER = "training, first start", "training, later start"
READS = 20_000
"""Samples whose rows are read at random after a start."""


def _start(folder: Path, over: OverShards | None) -> None:
    """What a rank of a training does before its first step, as far as it grows with the shards; and some steps."""
    found = open_shards(folder).usable()
    order = SampleOrder(len(found), 256, 0)
    numbers = np.concatenate([order.step(step) for step in range(-(-min(READS, len(found)) // 256))])
    assert all(found[number][1]["image_bytes"] for number in numbers.tolist())


def _stats(folder: Path, over: OverShards | None) -> None:
    assert read_statistics(open_shards(folder), over, ShortStatistics).images


def _verify(folder: Path, over: OverShards | None, deep: bool = False) -> None:
    assert not any(problems for _, problems in verify_run(folder, deep, over))


def _deep(folder: Path, over: OverShards | None) -> None:
    _verify(folder, over, deep=True)


def _filter(folder: Path, over: OverShards | None) -> None:
    source = StoredSource([str(folder)], Selection(labels=frozenset(["thing 1-0"])))
    source.over = over
    assert list(source)


def _report(folder: Path, over: OverShards | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        assert list(write_report(open_shards(folder), Path(out), ReportSettings(), over))


PARTS: dict[str, Callable[[Path, OverShards | None], None]] = {
    FIRST: _start,
    LATER: _start,
    "stats": _stats,
    "verify": _verify,
    "verify --deep": _deep,
    "filter --label, choosing": _filter,
    "report": _report,
}


def measure(what: str, folder: str, shards: int, workers: int) -> None:
    """In a process of its own: print wall seconds, CPU seconds of all its processes, and its own peak megabytes."""
    vars(reader)["HELD"] = 0  # no run is small enough to hold its index in memory
    loaded, began = sum(os.times()[:4]), time.monotonic()
    PARTS[what](Path(folder), over_shards(ReadOptions(workers=workers), shards, remote=False))
    print(json.dumps([time.monotonic() - began, sum(os.times()[:4]) - loaded, peak_megabytes()]))


def row(what: str, folders: list[tuple[Path, int]], workers: int) -> str:
    """Measure a part on the smaller and the larger run, each in a new process. Return a row of the table, with the
    CPU time of all shards by the slope between the two: a busy machine makes it less wrong than the time on a clock."""
    found = []
    for folder, shards in folders:
        command = [sys.executable, "-m", "benchmarks.scale_reading"]
        command += ["--measure", what, str(folder), str(shards), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    (_, few), (_, many) = folders
    times = [", ".join(f"{one[part]:.1f}" for one in found) for part in (0, 1)]
    peaks = ", ".join(f"{one[2]:.0f}" for one in found)
    seconds, cpu = (
        found[1][part] + max(found[1][part] - found[0][part], 0) / (many - few) * (ALL - many) for part in (0, 1)
    )
    shared = seconds if what.startswith("training") else cpu / CORES  # a training starts in threads of one process
    return (
        f"| {what} | {workers} | {few:,} and {many:,} | {' | '.join(times)} | {peaks} | {_duration(cpu)} | "
        f"{_duration(shared)} |"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def main() -> None:
    """Make the runs, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs=2, default=[2, 6], help="real ones")
    parser.add_argument("--indexes", type=int, nargs=2, default=[500, 2000], help="shards that are only indexes")
    parser.add_argument("--names", type=int, nargs=2, default=[10_000, 40_000], help="shards that are only names")
    parser.add_argument("--workers", type=int, default=max(os.cpu_count() or 1, 2))
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        what, folder, shards, workers = asked.measure
        measure(what, folder, int(shards), int(workers))
        return
    print(f"Reading shards of {SHARD} images on {os.cpu_count()} CPU cores: two sizes, and all {ALL:,} shards.\n")
    shared = f"all, on {CORES} cores; a training: here"
    print(f"| what | workers | shards | seconds | CPU seconds | peak MB | all, CPU | {shared} |")
    print("| --- " * 8 + "|")
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        real = [(Path(home, f"real-{shards}"), shards) for shards in asked.shards]
        for folder, shards in real:
            write_run(folder, shards)
        for what, sizes, write in [(FIRST, asked.indexes, write_indexes), (LATER, asked.names, write_names)]:
            folders = [(Path(home, f"{write.__name__}-{shards}"), shards) for shards in sizes]
            for folder, shards in folders:
                write(folder, shards, like=real[0][0])
            print(row(what, folders, 1), flush=True)
            for folder, _ in folders:
                shutil.rmtree(folder)
        for what in list(PARTS)[2:]:
            for workers in (1, asked.workers):
                print(row(what, real, workers), flush=True)


if __name__ == "__main__":
    main()
