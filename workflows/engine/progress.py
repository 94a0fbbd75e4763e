"""Show the progress of a run: a live table on a terminal, or else a line each minute; figures in `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pad_pipeline.console import Table, reworded, say
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Done, StageWork

Totals = dict[str, int]
METRICS_NAME = "metrics.jsonl"
EVERY = 60.0
"""Seconds between two lines on the console, and between two entries of `metrics.jsonl`."""
STORED_EVERY = 600.0
"""Seconds between two uploads of `metrics.jsonl` to an object store, which takes only whole files."""
LONG_START = 5.0
"""Seconds from which on the line says how long it took to start Ray and to load the models."""
RECENT = 60.0
"""Seconds over which the images per second are averaged."""


class StageState(NamedTuple):
    """The progress of a stage."""

    work: StageWork = StageWork()
    workers: int = 0
    queue: int = 0
    """Shards that wait for the stage."""


class Progress:
    """Collects the engine's progress, and reports it to the console and to `metrics.jsonl`.

    Args:
        kind: name of the run, with which each line begins.
        shards: number of shards to do.
        images: number of images in these shards.
        console: console to report to.
        out: folder for `metrics.jsonl`; None writes no such file.
        part: part of the run, such as `3-of-8`, which has a file of its own; empty for the whole run.
    """

    def __init__(
        self, kind: str, shards: int, images: int, console: Console, out: Folder | None = None, part: str = ""
    ) -> None:
        self.kind, self.shards, self.images, self.console, self.out = kind, shards, images, console, out
        self._metrics_name = f"metrics-{part}.jsonl" if part else METRICS_NAME
        self.found: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        """Beginning of a node's id -> number of shards that it finished."""
        self.done = 0
        self.stages: dict[str, StageState] = {}
        self.began = self._reported = self._stored = time.monotonic()
        self.working: float | None = None
        """When the stages began with the first images, after Ray had started and models were loaded; None before."""
        self._rates: dict[str, deque[tuple[float, int]]] = {}
        self._live: Live | None = None
        self._metrics = ""
        """Entries that are not written yet."""

    def follow(self, results: Iterable[Done]) -> None:
        """Take the results of all shards from an iterator, and show the progress meanwhile."""
        terminal = self.console.is_terminal
        live = Live(self._table(), console=self.console, refresh_per_second=2) if terminal else nullcontext()
        try:
            with live as self._live:
                for done in results:
                    self.done += 1
                    self.found.update(done.totals)
                    self.update(self.stages)
        finally:
            self._live = None
            if any(state.work.images for state in self.stages.values()):
                self._report(last=True)

    def update(self, stages: dict[str, StageState]) -> None:
        """Take the progress of the stages. This may be called as often as needed."""
        now, self.stages = time.monotonic(), stages
        if self.working is None and any(state.work.images for state in stages.values()):
            spent = sum(state.work.seconds / max(state.workers, 1) for state in stages.values())
            self.working, self._rates = max(self.began, now - spent), {}
        self._mark("all", now, self.found["images"])
        for name, state in stages.items():
            self._mark(name, now, state.work.images)
        if self._live:
            self._live.update(self._table())
        if now - self._reported >= EVERY:
            self._reported = now
            self._report()

    def say(self, text: str) -> None:
        """Print an event above the table."""
        say(reworded(text), "yellow", self.console)

    def done_on(self, node: str) -> None:
        """Count a shard for the node that finished it. `node` is Ray's id of the node."""
        self.nodes[node[:8]] += 1

    def figures(self) -> dict[str, Any]:
        """Return one entry of `metrics.jsonl`."""
        # A retry of a few failed images finishes whole shards, so more images are found than were to do.
        now = time.monotonic()
        elapsed, working = now - self.began, 0.0 if self.working is None else now - self.working
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "elapsed_seconds": round(elapsed, 1),
            "working_seconds": round(working, 1),
            "shards": self.done,
            "shards_to_do": self.shards,
            "images": self.found["images"],
            "images_to_do": self.images,
            "failed": self.found["failed"],
            "regions": self.found["regions"],
            "images_per_second": round(self._rate("all"), 3),
            "seconds_left": self._seconds_left(),
            "gpu_use": _gpu_use([state.work for state in self.stages.values()]),
            "stages": {
                name: {
                    "images": state.work.images,
                    "images_per_second": round(self._rate(name), 3),
                    "failed": state.work.failed,
                    "queue": state.queue,
                    "workers": state.workers,
                    "busy": round(min(1.0, state.work.seconds / max(working * state.workers, 1e-9)), 3),
                    "gpu_use": _gpu_use([state.work]),
                }
                for name, state in self.stages.items()
            },
            "nodes": dict(self.nodes),
        }

    def _seconds_left(self) -> int | None:
        """Return the seconds to the end. Before the first shard is done, they are those of the stage that has the most
        to do, of the stages that have begun; None if none has."""
        remaining = {"all": max(0, self.images - self.found["images"])}
        if not self.done and self.images:
            remaining = {
                name: self.images - state.work.images for name, state in self.stages.items() if state.work.images
            }
        found = [left / rate for name, left in remaining.items() if (rate := self._rate(name))]
        return round(max(found)) if found else None

    def _report(self, last: bool = False) -> None:
        figures = self.figures()
        if not self.console.is_terminal:
            say(self._line(figures), to=self.console)
        if self.out is not None:
            self._metrics += json.dumps(figures) + "\n"
            if not self.out.remote or last or time.monotonic() - self._stored >= STORED_EVERY:
                self._stored = time.monotonic()
                with suppress(OSError):  # if the disk is full, the writer of the shards reports it
                    self.out.append(self._metrics_name, self._metrics.encode())
                    self._metrics = ""

    def _line(self, figures: dict[str, Any]) -> str:
        slowest = max(self.stages, key=lambda name: figures["stages"][name]["busy"], default="")
        busy = figures["stages"].get(slowest, {})
        image = f", image {busy['images']} of {self.images}" if busy and self.done < self.shards else ""
        busiest = f"; busiest {slowest} ({busy['busy']:.0%}{image})" if busy else ""
        gpu = "" if figures["gpu_use"] is None else f"; GPU {figures['gpu_use']:.0%}"
        start = figures["elapsed_seconds"] - figures["working_seconds"] if self.working else 0.0
        of_start = f" ({_clock(start)} to start)" if start >= LONG_START else ""
        about = "" if self.done or figures["seconds_left"] is None else "about "
        return (
            f"{self.kind}: {self.done} of {_many(self.shards, 'shard')}, {_many(figures['images'], 'image')}, "
            f"{figures['images_per_second']:.1f}/s, {_many(figures['regions'], 'region')}, {figures['failed']} failed, "
            f"{_clock(figures['elapsed_seconds'])} elapsed{of_start}, "
            f"{about}{_clock(figures['seconds_left'])} left{busiest}{gpu}"
        )

    def _table(self) -> Group | Text:
        if not self.stages:
            return Text(f"{self.kind}: loading the models")
        figures = self.figures()
        table = Table("stage", *("images", "images/s", "queue", "workers", "busy", "failed"), box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, stage in figures["stages"].items():
            images, queue, workers, failed = (str(stage[key]) for key in ("images", "queue", "workers", "failed"))
            rate, busy = f"{stage['images_per_second']:.1f}", f"{stage['busy']:.0%}"
            table.add_row(name, images, rate, queue, workers, busy, failed)
        return Group(table, Text(self._line(figures)))

    def _mark(self, name: str, now: float, images: int) -> None:
        marks = self._rates.setdefault(name, deque([(self.working or self.began, 0)]))
        if len(marks) > 1 and now - marks[-2][0] < 1:
            marks.pop()  # keep one mark a second
        marks.append((now, images))
        while len(marks) > 2 and now - marks[1][0] > RECENT:
            marks.popleft()

    def _rate(self, name: str) -> float:
        """Return the images per second over the last `RECENT` seconds."""
        marks = self._rates.get(name, [(self.working or self.began, 0)])
        (first, before), (last, after) = marks[0], marks[-1]
        return (after - before) / max(last - first, 1e-9)


def _gpu_use(works: Sequence[StageWork]) -> float | None:
    """Return how busy the GPUs of some stages were in the last minute, 0 to 1; None if that is not known."""
    gpus = sum(work.gpus for work in works)
    return round(sum(work.gpu_use for work in works) / gpus, 3) if gpus else None


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _clock(seconds: float | None) -> str:
    """Return a duration such as `1:02:03`, or `?` for None."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
