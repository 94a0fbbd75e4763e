"""Part `engine`: the whole chain of the local engine, from JPEG files to shards, and what bounds it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.chain import Given, Work
from benchmarks.gpu.common import LLM, on_gpu, work_of
from benchmarks.gpu.runner import Job
from benchmarks.stage1 import SIZES, write_configs
from pad_pipeline.console import errors
from pad_pipeline.labels import LabelSettings
from pad_pipeline.machine import cores
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.sources.open import open_source
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Link, Operation
from pad_pipeline.workflows.engine.local import LocalEngine
from pad_pipeline.workflows.engine.progress import Progress
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.build import build_spec
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.prepare import prepare

SHARD, SHARDS = 256, 4


def measure(job: Job) -> None:
    """Run the chain, shard by shard."""
    size, shards = (1, 2) if job.smoke else (SHARD, SHARDS)
    work = work_of(job, size * shards, many_sizes=True)
    images = job.work / "photographs"
    images.mkdir(exist_ok=True)
    for number, data in enumerate(work.files):
        (images / f"{number:05d}.{'png' if work.drawn else 'jpg'}").write_bytes(data)
    job.sheet.attempt("chain", partial(_chain, job, work, _settings(job, work), images, size))


def _settings(job: Job, work: Work) -> ModelSettings:
    if job.smoke:
        return work.models
    write_configs(job.work / LLM, SIZES[LLM])
    return work.models.model_copy(update={"llm": LabelSettings(llm=str(job.work / LLM / "llm"))})


def _chain(job: Job, work: Work, models: ModelSettings, images: Path, size: int) -> None:
    out, source = Folder(job.work / f"shards-{os.getpid()}"), open_source(images)
    out.create()
    began = time.perf_counter()
    spec = build_spec(source, models, models.view)
    run, _ = prepare(spec, source, out, RunOptions(shard_size=size, depth="sizes"))
    job.sheet.note(f"Hashes of the weights, and the plan: {time.perf_counter() - began:.1f} s.")
    progress = Progress("benchmark", run.shards, run.images, errors, None)
    links = with_given(spec.chain(out, run.identity, run.images, 0), work.given)
    attempts = (Attempts(number, size) for number in range(run.shards))
    start, later, count = time.perf_counter(), None, 0
    with Utilization() as busy:
        for done in LocalEngine(isolated=True).run(links, attempts, progress):
            now, cpu = time.perf_counter(), _cpu_seconds()
            work_so_far = {name: state.work.seconds for name, state in progress.stages.items()}
            if done.totals["failed"]:
                job.sheet.note(f"{done.totals['failed']} images of shard {done.number} failed.")
            if later is None:
                job.sheet.row("Shards", shards="the first, with loading the models", seconds=now - start)
                later = now, cpu, work_so_far
                busy.take()
                continue
            began, cpu_before, before = later
            count += done.totals["images"]
            seconds = now - began
            shares = {f"{name} share": (work_so_far[name] - before[name]) / seconds for name in before}
            cells = {"img/s": count / seconds, **shares, "CPU cores busy": (cpu - cpu_before) / seconds}
            job.sheet.row("Shards", shards=f"1 to {done.number}", seconds=seconds, **cells, **busy.take())
    job.sheet.note(
        f"{cores()} CPU cores. A share is that of the shard's time; the largest bounds the chain, because "
        "decoding and writing work at the same time as the models."
    )


def _cpu_seconds() -> float:
    """Return the seconds that all processes of this machine have computed, because the engine works in a child."""
    busy = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return sum(map(int, busy)) / os.sysconf("SC_CLK_TCK")


def with_given(links: list[Link], given: Given) -> list[Link]:
    """Return a chain in which fixed findings replace those of the stages in `given`."""

    def replaced(link: Link) -> Link:
        more = [
            Operation(f"given {one.name}", partial(_Give, given[one.name]))
            for one in link.operations
            if one.name in given
        ]
        return link._replace(operations=[*link.operations, *more])

    return [replaced(link) for link in links]


class _Give:
    """Puts fixed findings into each row of a shard that did not fail."""

    def __init__(self, give: Callable[[ImageRecord], None]) -> None:
        self.give = give

    def __call__(self, shard: Shard) -> Shard:
        """Change the rows."""
        for row in shard.rows:
            if row.status != "failed":
                self.give(row)
        return shard


class Utilization:
    """Samples how busy the driver says the GPU is, in a thread, inside a `with` block."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Utilization:
        if on_gpu():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def take(self) -> dict[str, float]:
        """Return the mean since the last call, 0..1; nothing without samples."""
        samples, self._samples = self._samples, []
        return {"GPU busy (driver)": fmean(samples)} if samples else {}

    def _sample(self) -> None:
        try:
            while not self._stop.wait(0.2):
                self._samples.append(torch.cuda.utilization() / 100)
        except Exception as error:  # the driver's library is missing
            print(f"no utilization of the GPU: {type(error).__name__}: {error}", flush=True)
