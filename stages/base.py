"""What all stages share: batches, decode-ahead, and failures that stay with the image that caused them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.records import ImageRecord, Shard

Report = Callable[[str, int, int], None]


class Stage(ABC):
    """A callable over a shard in memory: it changes the rows that it takes, and returns the shard.

    An exception on a batch, out of memory included, halves the batch and tries again, down to the image that causes
    it; that one fails with the stage's name and the reason, alone.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"ok"})
    """The statuses of the rows it works on."""
    ahead_threads: ClassVar[int] = min(8, os.cpu_count() or 1)
    """Threads that prepare images (decode, resize) while a batch is computed."""

    report: Report = staticmethod(lambda name, done, rows: None)
    """Is told the stage's name, the images done and the images in all, after each batch."""

    @abstractmethod
    def prepare(self, row: ImageRecord) -> Any:
        """What `process` needs of one image; runs ahead of it in a thread."""

    @abstractmethod
    def process(self, rows: list[ImageRecord], inputs: list[Any]) -> None:
        """Compute a batch. Rows are changed last, when nothing can fail any more."""

    def batches(self, rows: list[ImageRecord]) -> Iterable[list[ImageRecord]]:
        """The rows in batches; by default as many as are worth preparing ahead."""
        return chunks(rows, 8 * self.ahead_threads)

    def __call__(self, shard: Shard) -> Shard:
        """Work on the shard's rows that the stage takes."""
        rows = [row for row in shard.rows if row.status in self.takes]
        done = 0
        with ThreadPoolExecutor(self.ahead_threads, thread_name_prefix=self.name) as threads:
            for batch, inputs in _prepared(threads, self.prepare, self.batches(rows)):
                self._run(batch, inputs)
                done += len(batch)
                self.report(self.name, done, len(rows))
        return shard

    def _run(self, rows: list[ImageRecord], inputs: list[Future]) -> None:
        failure = self._try(rows, inputs)
        if failure is None:
            return
        # Outside the handler: the exception, and with it the batch's tensors, is gone by now.
        if failure.out_of_memory:
            _release_gpu_memory()
        if len(rows) == 1:
            rows[0].fail(self.name, failure.reason)
        else:
            half = len(rows) // 2
            self._run(rows[:half], inputs[:half])
            self._run(rows[half:], inputs[half:])

    def _try(self, rows: list[ImageRecord], inputs: list[Future]) -> _Failure | None:
        """What went wrong, as text; a fault of the user or of the machine is raised, for it is no image's fault."""
        try:
            self.process(rows, [future.result() for future in inputs])
        except (UserError, OSError):
            raise
        except Exception as error:
            kind = type(error).__name__  # torch's are known by name: not every stage imports torch
            if kind == "AcceleratorError":  # after it, nothing on this GPU works in this process
                raise
            return _Failure(f"{kind}: {error}", kind == "OutOfMemoryError")
        return None


class _Failure(NamedTuple):
    reason: str
    out_of_memory: bool


def _release_gpu_memory() -> None:
    import torch

    torch.cuda.empty_cache()


def _prepared(
    threads: ThreadPoolExecutor, prepare: Callable[[ImageRecord], Any], batches: Iterable[list[ImageRecord]]
) -> Iterator[tuple[list[ImageRecord], list[Future]]]:
    """Each batch with its inputs under way, one batch ahead: the inputs of two batches at most are in memory."""
    waiting: deque[tuple[list[ImageRecord], list[Future]]] = deque()
    for batch in batches:
        waiting.append((batch, [threads.submit(prepare, row) for row in batch]))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def chunks(rows: list[Any], size: int) -> list[list[Any]]:
    """`rows` in lists of `size`, the last one shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
