"""`pad` with something wrong in it: a commit point that kills, a stage that segfaults, exits, or always fails.

Run by tests as `python -m tests.doomed WHAT -- pad's arguments`, or called in a fork of a warm process. The chain is
changed in the driver alone; what is put into it is built in whatever process the engine uses.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pad_pipeline.records import ImageRecord
from pad_pipeline.shards import writer
from pad_pipeline.stages.base import Stage
from pad_pipeline.storage import Folder, RemoteFolder
from pad_pipeline.workflows import cli
from pad_pipeline.workflows.engine.chain import Link, Operation
from pad_pipeline.workflows.runs.shard_io import WriteShard

POINTS = ("before data", "mid data", "data written", "data in place", "index written", "committed")
COMMITS = {kind: kind.commit for kind in (Folder, RemoteFolder)}
ADD_SAMPLE, RICHEST_FIRST = writer._add_sample, writer._richest_first


class Deadly(Stage):
    """Kills its process over the images whose id holds a given word."""

    name = "deadly"

    def __init__(self, word: str, how: str) -> None:
        super().__init__()
        self.word, self.how = word, how

    def process(self, rows: list[ImageRecord], inputs: list[Any]) -> list[Any]:
        if any(self.word in row.id for row in rows):
            if self.how == "segfault":
                ctypes.string_at(0)
            if self.how == "memory":
                raise MemoryError
            os._exit(int(self.how))
        return inputs

    def finish(self, row: ImageRecord, output: Any) -> None:
        pass


class Broken(Stage):
    """Fails for every image, or for those whose id holds a given word."""

    name = "broken"

    def __init__(self, word: str = "") -> None:
        super().__init__()
        self.word = word

    def prepare(self, row: ImageRecord) -> None:
        if self.word in row.id:
            raise RuntimeError("the model gives no finite numbers")

    def finish(self, row: ImageRecord, output: Any) -> None:
        pass


class Lose:
    """Deletes a file after each shard that is written."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def __call__(self, done: Any) -> Any:
        self.path.unlink(missing_ok=True)
        return done


class DoomedWrite(WriteShard):
    """Kills a process at a commit point, the n-th time that it comes by.

    Args:
        victim: its number; 0 for the process that writes.
    """

    def __init__(self, out: Folder, identity: str, point: str, times: int, victim: int) -> None:
        super().__init__(out, identity)
        left = times

        def reached(name: str) -> None:
            nonlocal left
            left -= name == point
            if left == 0:
                os.kill(victim or os.getpid(), signal.SIGKILL)

        @contextmanager
        def commit(folder: Folder, name: str, durable: bool = True, first: bool = False) -> Iterator[Path]:
            tar, shard = name.endswith(".tar"), name.startswith("pad-")
            if shard and tar:
                reached("before data")
            with COMMITS[type(folder)](folder, name, durable, first) as path:
                yield path
                if shard:
                    reached("data written" if tar else "index written")
            if shard:
                reached("data in place" if tar else "committed")

        middle: list[ImageRecord] = []

        def richest_first(records: list[ImageRecord]) -> list[ImageRecord]:
            samples = RICHEST_FIRST(records)
            middle[:] = samples[len(samples) // 2 :][:1]
            return samples

        def add_sample(tar: tarfile.TarFile, record: ImageRecord) -> dict[str, int | str]:
            places = ADD_SAMPLE(tar, record)
            if any(record is one for one in middle):
                reached("mid data")
            return places

        for kind in COMMITS:
            kind.commit = commit  # type: ignore[method-assign]
        writer._richest_first, writer._add_sample = richest_first, add_sample


def doom(what: str) -> Callable[[list[Link]], list[Link]]:
    """A change to a chain. `at POINT N [driver]`, `segfault WORD`, `memory WORD`, `exit CODE WORD`, `broken [WORD]`,
    `lose PATH`, or nothing."""
    words = what.split(":")

    def change(links: list[Link]) -> list[Link]:
        first, last = links[0], links[-1]
        if words[0] == "at":
            write = last.operations[-1].build
            assert isinstance(write, partial)
            victim = os.getpid() if len(words) > 3 else 0
            doomed = Operation("write", partial(DoomedWrite, *write.args, words[1], int(words[2]), victim))
            return [*links[:-1], last._replace(operations=[*last.operations[:-1], doomed])]
        if words[0] == "lose":
            lose = Operation("lose", partial(Lose, words[1]))
            return [*links[:-1], last._replace(operations=[*last.operations, lose])]
        bad = {
            "segfault": lambda: Operation("deadly", partial(Deadly, words[1], "segfault")),
            "memory": lambda: Operation("deadly", partial(Deadly, words[1], "memory")),
            "exit": lambda: Operation("deadly", partial(Deadly, words[2], words[1])),
            "broken": lambda: Operation("broken", partial(Broken, *words[1:])),
        }
        if words[0] in bad:
            return [first._replace(operations=[*first.operations, bad[words[0]]()]), *links[1:]]
        return links

    return change


def run(what: str, arguments: list[str]) -> None:
    """`pad` with `arguments`; ends the process."""
    if what:
        from pad_pipeline.workflows.runs import build

        for name in ("import_chain", "annotation_chain"):
            chain = getattr(build, name)
            setattr(build, name, lambda *a, _chain=chain, **k: doom(what)(_chain(*a, **k)))
    sys.argv = ["pad", *arguments]
    cli.main()


if __name__ == "__main__":
    from tests import doomed  # by its own name: what is pickled must be found by it in other processes

    mark = sys.argv.index("--")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    doomed.run(" ".join(sys.argv[1:mark]), sys.argv[mark + 1 :])
