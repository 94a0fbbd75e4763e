"""The base class of stages. It makes batches, and marks only the image that causes an error as failed."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from pad_pipeline.errors import UserError
from pad_pipeline.records import MISSING, ImageRecord, Shard


class StageBroken(UserError):
    """Stops the run when too many images in a row fail in one stage, because all other images would fail too."""


Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
"""The result of `Stage.prepare` for one image; an input of `Stage.process`."""
Output = TypeVar("Output")
"""The result of `Stage.process` for one image; the input of `Stage.finish`."""
Finished = list[tuple[ImageRecord, "Future[None]"]]
"""Each row that was processed, with the future of its `finish` call."""


class Stage(ABC, Generic[Prepared, Output]):
    """A callable that changes the rows of a shard in memory and returns the shard.

    The work on an image has three steps. `prepare` runs in threads, one batch ahead of the model: decode, resize.
    `process` runs the model on a batch, in the calling thread. `finish` runs in threads, one batch behind the model: it
    writes the model's results into the rows. The threads keep the model from waiting for work on single images.

    If `process` raises an exception, the batch is halved and tried again, down to the image that causes the exception.
    Only that image fails, with the stage's name and the reason. If memory ran out, batches of this shape stay small;
    and if it runs out for one image alone, that is an error of the machine and not a failure of the image.
    """

    name: ClassVar[str]
    statuses: ClassVar[frozenset[str]] = frozenset({"ok"})
    """The stage works on rows with one of these statuses."""
    threads: ClassVar[int] = min(16, os.cpu_count() or 1)
    """Threads for `prepare` and `finish`."""
    batch_size: int = 8 * threads
    """The most rows in one call of `process`. The default gives each thread several rows."""
    breaker: int = 0
    """The run stops when this many images in a row fail in this stage; 0 never stops it."""
    tick: Callable[[], None] = staticmethod(lambda: None)
    """A function that is called after each batch."""

    def __init__(self) -> None:
        self._fits: dict[Hashable, int] = {}
        """Shape -> the batch size that fits into memory. Shapes for which memory never ran out are missing."""
        self.low_memory = False
        """True while an image for which memory ran out is tried again by itself; `process` should then use less."""
        self.images = self.failed = 0
        """The number of images that the stage has worked on so far, and the number of them that failed."""
        self.seconds = 0.0
        """The time that the stage has worked so far."""
        self._in_a_row = 0

    def prepare(self, row: ImageRecord) -> Prepared:
        """Return the input of `process` for one image. By default this is None."""
        return cast(Prepared, None)

    def process(self, rows: list[ImageRecord], inputs: list[Prepared]) -> list[Output]:
        """Compute a batch and return an output for each row; by default, the inputs. Do not change the rows here,
        because the batch may be tried again."""
        return cast(list[Output], inputs)

    def finish(self, row: ImageRecord, output: Output) -> None:
        """Write the output of `process` into the row."""
        raise NotImplementedError

    def shape(self, row: ImageRecord) -> Hashable:
        """Return a sortable value, such as the size of the resized image. All rows of a batch have the same value."""
        return ()

    def length(self, row: ImageRecord) -> int:
        """Return a number, such as the length of the text. Rows with similar numbers share a batch."""
        return 0

    def __call__(self, shard: Shard) -> Shard:
        """Work on the rows of the shard whose status is in `statuses`.

        Raises:
            StageBroken: too many images in a row failed.
            UserError, OSError, MemoryError: the user or the machine, and not an image, caused an error.
        """
        rows = [row for row in shard.rows if row.status in self.statuses and not row.done]
        behind: tuple[list[ImageRecord], Finished] = ([], [])
        began = time.monotonic()
        threads = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        try:
            for batch, inputs in self._prepared(threads, rows):
                finished = [(row, threads.submit(self.finish, row, out)) for row, out in self._run(batch, inputs)]
                self._collect(*behind)
                behind = batch, finished
                self.images += len(batch)
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self.tick()
            self._collect(*behind)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # do not wait: a read over the network may take minutes
            raise
        threads.shutdown()
        self.seconds += time.monotonic() - began
        return shard

    def batches(self, rows: list[ImageRecord]) -> Iterator[list[ImageRecord]]:
        """Yield `rows` in batches of one shape, sorted by shape and length. Rows with the same shape and length keep
        their order, so that a shard always has the same batches."""
        order: list[tuple[Any, int, int]] = []
        for index, row in enumerate(rows):
            try:
                order.append((self.shape(row), self.length(row), index))
            except Exception as error:
                self._fail(row, _failure(error))
        self._count_failures([row for row in rows if row.status == "failed"])
        for _, same in groupby(sorted(order), lambda item: item[0]):
            yield from chunks([rows[index] for _, _, index in same], self.batch_size)

    def _prepared(
        self, threads: ThreadPoolExecutor, rows: list[ImageRecord]
    ) -> Iterator[tuple[list[ImageRecord], list[Future[Prepared]]]]:
        """Yield each batch with the futures of its inputs. Only one further batch is prepared, to save memory."""
        ahead = None
        for batch in self.batches(rows):
            ready, ahead = ahead, (batch, [threads.submit(self.prepare, row) for row in batch])
            if ready:
                yield ready
        if ahead:
            yield ahead

    def _run(self, rows: list[ImageRecord], inputs: list[Future[Prepared]]) -> list[tuple[ImageRecord, Output]]:
        """Process a batch; return each row that did not fail, with its output."""
        shape = self.shape(rows[0])
        size = self._fits.get(shape, len(rows))
        if len(rows) > size:
            parts = zip(chunks(rows, size), chunks(inputs, size), strict=True)
            return [pair for part in parts for pair in self._run(*part)]
        outputs = self._try(rows, inputs)
        if isinstance(outputs, _Failure) and outputs.out_of_memory:
            # Not in the exception handler, because the exception there would still hold the tensors of the batch.
            if torch := sys.modules.get("torch"):
                torch.cuda.empty_cache()
            if len(rows) == 1:
                self.low_memory = True
                outputs = self._try(rows, inputs)
                self.low_memory = False
        if not isinstance(outputs, _Failure):
            return list(zip(rows, outputs, strict=True))
        if len(rows) == 1:
            self._fail(rows[0], outputs)
            return []
        half = len(rows) // 2
        if outputs.out_of_memory:
            self._fits[shape] = half
        pairs = []
        for part, part_inputs in zip(chunks(rows, half), chunks(inputs, half), strict=True):
            pairs += self._run(part, part_inputs)
        return pairs

    def _try(self, rows: list[ImageRecord], inputs: list[Future[Prepared]]) -> list[Output] | _Failure:
        try:
            return self.process(rows, [future.result() for future in inputs])
        except Exception as error:
            return _failure(error)

    def _collect(self, batch: list[ImageRecord], finished: Finished) -> None:
        for row, future in finished:
            try:
                future.result()
            except Exception as error:
                self._fail(row, _failure(error))
        self._count_failures(batch)

    def _fail(self, row: ImageRecord, failure: _Failure) -> None:
        """Mark a row as failed; raise `MemoryError` if memory ran out, because it may be there on another try."""
        if failure.out_of_memory:
            raise MemoryError(failure.reason)
        row.fail(self.name, failure.reason)

    def _count_failures(self, rows: list[ImageRecord]) -> None:
        """Count the failed rows, and raise `StageBroken` after `breaker` failures in a row."""
        for row in rows:
            if row.status != "failed":
                self._in_a_row = 0
                continue
            self.failed += 1
            # Two kinds of failures are not this stage's fault: files that were missing when the plan was made, and
            # failures that an earlier run recorded for another stage.
            self._in_a_row += row.place.size != MISSING and row.stage == self.name
            if 0 < self.breaker <= self._in_a_row:
                rule = f"{self._in_a_row} images in a row failed, the last one ({row.source}) with: {row.reason}"
                remedy = "correct the cause and run the same command again; if the images are bad, set `breaker` to 0"
                more = "`retry_failed` tries images in quarantine again"
                raise StageBroken("stage", self.name, rule, f"{remedy}; {more}")


class _Failure(NamedTuple):
    reason: str
    out_of_memory: bool


_MEMORY_SIGNS = (
    "CUDA error: out of memory", "ALLOC_FAILED", "Failed to allocate memory for requested buffer",
    "DefaultCPUAllocator",
)  # fmt: skip
"""Parts of the messages with which pinned memory, cuBLAS and cuDNN, ONNX Runtime, and torch on the CPU report that
memory ran out."""


def _failure(error: Exception) -> _Failure:
    """Return the failure of an image for `error`; raise `error` itself if the user or the machine caused it."""
    kind = type(error).__name__  # torch's errors are recognized by name, because not every stage imports torch
    memory = (
        isinstance(error, MemoryError)
        or kind == "OutOfMemoryError"
        or any(sign in str(error) for sign in _MEMORY_SIGNS)
    )
    # After any other AcceleratorError, this process can't use the GPU any more.
    if isinstance(error, (UserError, OSError)) or (kind == "AcceleratorError" and not memory):
        raise error
    return _Failure(f"{kind}: {error}", memory)


def chunks(rows: list[Item], size: int) -> list[list[Item]]:
    """Split a list into lists of length `size`; the last list may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
