"""What all stages share: batches, work ahead and behind, and failures that stay with the image that caused them."""

from __future__ import annotations

import os
import time
from abc import ABC
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.records import MISSING, ImageRecord, Shard


class StageBroken(UserError):
    """A stage fails for every image: the run stops, so that it does not set the world aside."""


class Stage(ABC):
    """A callable over a shard in memory: it changes the rows that it takes, and returns the shard.

    Three steps: `prepare` in threads, one batch ahead (decode, resize); `process` here, batch by batch (the model);
    `finish` in threads, one batch behind (numbers into records). So the model waits for nothing that one image needs
    alone.

    An exception in a batch halves the batch and tries again, down to the image that causes it; that one fails with
    the stage's name and the reason, alone. Where memory ran out, the half is kept as the batch size for that shape.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"ok"})
    """The statuses of the rows it works on."""
    threads: ClassVar[int] = min(16, os.cpu_count() or 1)
    """Threads for `prepare` and `finish`."""
    batch_size: int = 8 * threads
    """Rows in one `process`, at most; by default as many as are worth preparing ahead."""

    breaker: int = 0
    """The run stops when this many images in a row fail in this stage; 0 never stops it."""
    tick: Callable[[], None] = staticmethod(lambda: None)
    """Is called after each batch."""

    def __init__(self) -> None:
        self._fits: dict[Hashable, int] = {}
        """Shape -> the batch size that memory has room for, where the wanted one was too large."""
        self.tight = False
        """Set while an image is tried again for which memory ran out although it was alone: take less at a time."""
        self.images = self.failed = 0
        """What it has worked on so far."""
        self.seconds = 0.0
        """What that took."""
        self._in_a_row = 0

    def prepare(self, row: ImageRecord) -> Any:
        """What `process` needs of one image."""
        return None

    def process(self, rows: list[ImageRecord], inputs: list[Any]) -> list[Any]:
        """Compute a batch: an output for each row. Rows are not changed here, for it may be tried again."""
        return inputs

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Put what `process` found into the row."""
        raise NotImplementedError

    def shape(self, row: ImageRecord) -> Hashable:
        """What rows of one batch have in common, such as the size of the resized image."""
        return ()

    def length(self, row: ImageRecord) -> int:
        """What rows of one batch should have nearly in common, such as the length of the text."""
        return 0

    def __call__(self, shard: Shard) -> Shard:
        """Work on the shard's rows that the stage takes.

        Raises:
            StageBroken: too many images in a row failed.
            UserError, OSError: something is wrong that is no image's fault.
        """
        rows = [row for row in shard.rows if row.status in self.takes and not row.done]
        behind: deque[tuple[list[ImageRecord], list[tuple[ImageRecord, Future]]]] = deque()
        began = time.monotonic()
        threads = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        try:
            for batch, inputs in _prepared(threads, self.prepare, self.batches(rows)):
                found = self._run(batch, inputs)
                behind.append((batch, [(row, threads.submit(self.finish, row, output)) for row, output in found]))
                if len(behind) > 1:
                    self._settle(*behind.popleft())
                self.images += len(batch)
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self.tick()
            for batch, finished in behind:
                self._settle(batch, finished)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # a read over the network may take minutes
            raise
        threads.shutdown()
        self.seconds += time.monotonic() - began
        return shard

    def batches(self, rows: list[ImageRecord]) -> Iterator[list[ImageRecord]]:
        """`rows` in batches of one shape, near in length. The plan's order decides among equals, so that a shard's
        batches are always the same."""
        order: dict[int, tuple[Any, int]] = {}
        for row in rows:
            try:
                order[id(row)] = (self.shape(row), self.length(row))
            except Exception as error:
                row.fail(self.name, _failure(error).reason)
        self._watch([row for row in rows if row.status == "failed"])
        rows = sorted((row for row in rows if id(row) in order), key=lambda row: order[id(row)])
        for _, same in groupby(rows, lambda row: order[id(row)][0]):
            yield from chunks(list(same), self.batch_size)

    def _run(self, rows: list[ImageRecord], inputs: list[Future]) -> list[tuple[ImageRecord, Any]]:
        """Each row that came through, with its output."""
        shape = self.shape(rows[0])
        size = self._fits.get(shape, len(rows))
        if len(rows) > size:
            parts = zip(chunks(rows, size), chunks(inputs, size), strict=True)
            return [pair for part, its in parts for pair in self._run(part, its)]
        outputs = self._try(rows, inputs)
        if isinstance(outputs, _Failure) and outputs.out_of_memory and len(rows) == 1:
            _release_gpu_memory()
            self.tight = True
            outputs = self._try(rows, inputs)
            self.tight = False
        if not isinstance(outputs, _Failure):
            return list(zip(rows, outputs, strict=True))
        # Outside the handler: the exception, and with it the batch's tensors, is gone by now.
        if len(rows) == 1:
            rows[0].fail(self.name, outputs.reason)
            return []
        half = len(rows) // 2
        if outputs.out_of_memory:
            _release_gpu_memory()
            self._fits[shape] = half
        found = []
        for part, its in zip(chunks(rows, half), chunks(inputs, half), strict=True):
            found += self._run(part, its)
            if outputs.out_of_memory and any(row.status == "failed" for row in part):
                self._fits[shape] = half  # one image was too large: that makes no smaller batches of the others
        return found

    def _try(self, rows: list[ImageRecord], inputs: list[Future]) -> list[Any] | _Failure:
        try:
            return self.process(rows, [future.result() for future in inputs])
        except Exception as error:
            return _failure(error)

    def _settle(self, batch: list[ImageRecord], finished: list[tuple[ImageRecord, Future]]) -> None:
        for row, future in finished:
            try:
                future.result()
            except Exception as error:
                row.fail(self.name, _failure(error).reason)
        self._watch(batch)

    def _watch(self, rows: list[ImageRecord]) -> None:
        """Count what failed, and stop where nothing but failure comes."""
        for row in rows:
            if row.status != "failed":
                self._in_a_row = 0
                continue
            self.failed += 1
            # Neither a file that was missing when the plan was made, nor a failure that another stage of an earlier run
            # noted, says anything about this stage.
            self._in_a_row += row.place.size != MISSING and row.stage == self.name
            if 0 < self.breaker <= self._in_a_row:
                rule = f"{self._in_a_row} images in a row failed, the last one ({row.source}) with: {row.reason}"
                remedy = (
                    "mend the cause and run the same command again; if it is the images, go on with `breaker` 0; "
                    "images that were set aside are tried again with `retry_failed`"
                )
                raise StageBroken("stage", self.name, rule, remedy)


class _Failure(NamedTuple):
    reason: str
    out_of_memory: bool


_MEMORY_SIGNS = ("CUDA error: out of memory", "ALLOC_FAILED", "Failed to allocate memory for requested buffer")
"""Of memory that ran out beside torch's own allocator: pinned, in cuBLAS, in cuDNN; in ONNX Runtime."""


def _failure(error: Exception) -> _Failure:
    """What went wrong, as text; a fault of the user or of the machine is raised, for it is no image's fault."""
    kind = type(error).__name__  # torch's are known by name: not every stage imports torch
    memory = kind == "OutOfMemoryError" or any(sign in str(error) for sign in _MEMORY_SIGNS)
    # After any other AcceleratorError nothing on this GPU works in this process.
    if isinstance(error, (UserError, OSError)) or (kind == "AcceleratorError" and not memory):
        raise error
    return _Failure(f"{kind}: {error}", memory)


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
