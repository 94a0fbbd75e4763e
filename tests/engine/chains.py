"""Small chains for the engines: shards of a few rows without images, and a stage with something wrong in it. A child
process imports this in no time."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pad_pipeline.errors import UserError
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.stages.base import Stage
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Done, Link, Operation, Task
from pad_pipeline.workflows.engine.progress import Progress

ROWS = 4
"""Images of each shard."""


class Read:
    """Task -> rows named `SHARD-ROW`."""

    def __call__(self, task: Task) -> Shard:
        """As `ReadShard`, without a plan."""
        names = [f"{task.number}-{row}" for row in range(ROWS)]
        shard = Shard(task.number, [ImageRecord(name, name, key=name) for name in names], trial=task.rows is not None)
        for row, stage in task.killers:
            shard.rows[row].fail(stage, "it kills")
        shard.rows = shard.rows[slice(*(task.rows or (0, ROWS)))]
        return shard


class Work(Stage):
    """Does what it is told with the rows of these names.

    Args:
        what: `nothing`, `segfault`, `exit`, `raise`, `foreign` (an error that can't be sent), `memory` (there is none),
            `scarce` (there is none in the first process), `node`, which notes Ray's id of its node in `notes`,
            `meet`, which waits until shard 1 is read, `crowd`, which once waits until the next shard is read and then
            exits, or `wait`, which notes there that it was stopped, or with `deaf` goes on all the same.
        names: of the rows.
        notes: a file of this name gets a line for each thing that happens.
    """

    name = "work"
    batch_size = 2

    def __init__(self, what: str = "nothing", names: Sequence[str] = (), notes: str = "") -> None:
        super().__init__()
        self.what, self.names, self.notes = what, names, notes
        if "begin" in names:
            self._do(ImageRecord("begin", "begin", key="begin"))

    def note(self, text: str) -> None:
        """Add a line to the notes."""
        if self.notes:
            with Path(self.notes).open("a") as stream:
                stream.write(text + "\n")

    def process(self, rows: list[ImageRecord], inputs: list[Any]) -> list[Any]:
        """As it is told."""
        for row in rows:
            self.note(f"{row.id} {os.getpid()}")
            if row.id in self.names:
                self._do(row)
        return inputs

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Nothing."""

    def _noted(self) -> list[str]:
        return Path(self.notes).read_text().splitlines()

    def _wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 60
        while line not in self._noted():
            assert time.monotonic() < deadline, f"nothing notes {line!r}"
            time.sleep(0.01)

    def _is_first(self) -> bool:
        return Path(self.notes).read_text().split()[1] == str(os.getpid())

    def _do(self, row: ImageRecord) -> None:
        class Foreign(UserError):
            pass

        if self.what == "segfault":
            ctypes.string_at(0)
        elif self.what == "exit":
            os._exit(0)
        elif self.what == "memory" or (self.what == "scarce" and self._is_first()):
            raise MemoryError("no room")
        elif self.what == "node":
            import ray

            self.note(f"node {ray.get_runtime_context().get_node_id()}")
        elif self.what == "raise":
            raise UserError("shard", "here", "something is wrong", "mend it")
        elif self.what == "foreign":
            raise Foreign("shard", "here", "something is wrong", "mend it")
        elif self.what == "meet":
            self._wait_for("read 1")
        elif self.what == "crowd":
            shard = row.id.partition("-")[0]
            if f"crowd {shard}" not in self._noted():
                self.note(f"crowd {shard}")
                self._wait_for(f"read {int(shard) + 1}")
                os._exit(0)
        elif self.what in ("wait", "deaf"):
            if self.what == "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.note("waits")
            try:
                while True:
                    time.sleep(0.01)
                    self.note("waits")
            finally:
                self.note("stopped in good order")


class Write:
    """Shard -> how many of its rows failed."""

    def __call__(self, shard: Shard) -> Done:
        """As `WriteShard`, without a folder."""
        if shard.trial:
            return Done(shard.number, {})
        failed = sum(row.status == "failed" for row in shard.rows)
        return Done(shard.number, {"images": len(shard.rows), "failed": failed})


class Meets:
    """Reads or writes as `Read` and `Write`, and works at the same time as others: each read is noted when it begins,
    and the write of shard 0 waits until shard 1 is at work."""

    def __init__(self, notes: str, reads: bool) -> None:
        self.notes, self.reads = Path(notes), reads

    def __call__(self, item: Any) -> Any:
        """Read or write."""
        if self.reads:
            with self.notes.open("a") as stream:
                stream.write(f"read {item.number}\n")
            return Read()(item)
        deadline = time.monotonic() + 60
        while item.number == 0 and not any(line.startswith("1-0") for line in self.notes.read_text().splitlines()):
            assert time.monotonic() < deadline, "the models wait for this write"
            time.sleep(0.01)
        return Write()(item)


class Told(Progress):
    """A progress whose console is text."""

    def __init__(self, shards: int) -> None:
        self.text = io.StringIO()
        super().__init__("test", shards, shards * ROWS, Console(file=self.text, width=500))


def chain(work: Callable[[], Work] = Work) -> list[Link]:
    """read -> work -> write, in two links."""
    return [
        Link("first", [Operation("read", Read), Operation("work", work)]),
        Link("last", [Operation("write", Write)]),
    ]


def doing(what: str, *names: str, notes: Path | str = "") -> list[Link]:
    """A chain that does `what` with the rows of these names; `begin` among them: when it is built."""
    return chain(partial(Work, what, names, str(notes)))


def begin(number: int) -> Attempts:
    """The attempts at a shard."""
    return Attempts(number, ROWS)


def on_gpu(what: str, *names: str, notes: Path) -> list[Link]:
    """A chain like `doing`, whose middle link is on a GPU, between a read and a write that work at the same time."""
    notes.touch()
    return [
        Link("first", [Operation("read", partial(Meets, str(notes), reads=True))]),
        Link("models", [Operation("work", partial(Work, what, names, str(notes)))], on_gpu=True),
        Link("last", [Operation("write", partial(Meets, str(notes), reads=False))]),
    ]


def until(happens: Callable[[], object]) -> None:
    """Wait until something happens, two minutes at most."""
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)
