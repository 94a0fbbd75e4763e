"""The base class of stages. It makes batches, overlaps their work, and fails only the image that causes an error."""

from __future__ import annotations

import os
import time
from abc import ABC
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from pad_pipeline.errors import UserError
from pad_pipeline.records import MISSING, ImageRecord, Shard


class StageBroken(UserError):
    """A stage fails for image after image. The run stops, because otherwise every image would end in quarantine."""


Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
"""What `Stage.prepare` returns for one image: an input of `Stage.process`."""
Output = TypeVar("Output")
"""What `Stage.process` returns for one image: the input of `Stage.finish`."""
Batch = tuple[list[ImageRecord], list["Future[Prepared]"]]
"""Rows of one batch, with the futures of their inputs."""
Finished = list[tuple[ImageRecord, "Future[None]"]]
"""Rows, each with the future of its call of `finish`."""


class Stage(ABC, Generic[Prepared, Output]):
    """A callable that works on the rows of a shard in memory, in place, and returns the shard.

    The work on an image has three steps. `prepare` runs in threads, one batch ahead of the model (decode, resize).
    `process` runs the model on a batch, in the calling thread. `finish` runs in threads, one batch behind (numbers into
    records). So the model does not wait for work that each image needs by itself.

    If a batch raises an exception, it is halved and tried again, down to the image that causes the exception. Only that
    image fails, with the stage's name and the reason. If memory ran out, the half stays the batch size for that shape.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"ok"})
    """The statuses of the rows that the stage works on."""
    threads: ClassVar[int] = min(16, os.cpu_count() or 1)
    """Threads for `prepare` and `finish`."""
    batch_size: int = 8 * threads
    """The most rows in one call of `process`; the default keeps all threads busy for a while."""

    breaker: int = 0
    """The run stops when this many images in a row fail in this stage; 0 never stops it."""
    tick: Callable[[], None] = staticmethod(lambda: None)
    """Called after each batch."""

    def __init__(self) -> None:
        self._fits: dict[Hashable, int] = {}
        """Shape -> the batch size that fits into memory, for shapes with which memory ran out."""
        self.tight = False
        """True while one image is tried again because memory ran out for it alone; `process` then does less at once."""
        self.images = self.failed = 0
        """The numbers of images that the stage has worked on so far, and that have failed."""
        self.seconds = 0.0
        """The time that this work took."""
        self._in_a_row = 0

    def prepare(self, row: ImageRecord) -> Prepared:
        """Return the input of `process` for one image; None by default."""
        return cast(Prepared, None)

    def process(self, rows: list[ImageRecord], inputs: list[Prepared]) -> list[Output]:
        """Compute a batch and return an output for each row; the inputs by default. It must not change the rows,
        because the batch may be tried again."""
        return cast(list[Output], inputs)

    def finish(self, row: ImageRecord, output: Output) -> None:
        """Write the output of `process` into the row."""
        raise NotImplementedError

    def shape(self, row: ImageRecord) -> Hashable:
        """Return a sortable value that all rows of a batch must share, such as the size of the resized image."""
        return ()

    def length(self, row: ImageRecord) -> int:
        """Return a number that rows of one batch should nearly share, such as the length of the text."""
        return 0

    def __call__(self, shard: Shard) -> Shard:
        """Work on those rows of the shard whose status is in `takes`.

        Raises:
            StageBroken: too many images in a row failed.
            UserError, OSError: something is wrong that no image is to blame for.
        """
        rows = [row for row in shard.rows if row.status in self.takes and not row.done]
        behind: tuple[list[ImageRecord], Finished] = ([], [])
        began = time.monotonic()
        threads = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        try:
            for batch, inputs in self._prepared(threads, rows):
                finished = [(row, threads.submit(self.finish, row, out)) for row, out in self._run(batch, inputs)]
                self._settle(*behind)
                behind = batch, finished
                self.images += len(batch)
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self.tick()
            self._settle(*behind)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # do not wait: a read over the network may take minutes
            raise
        threads.shutdown()
        self.seconds += time.monotonic() - began
        return shard

    def batches(self, rows: list[ImageRecord]) -> Iterator[list[ImageRecord]]:
        """Return `rows` in batches of one shape, sorted by length. Equal rows stay in the plan's order, so that a
        shard's batches are always the same."""
        order: list[tuple[Any, int, int]] = []
        for index, row in enumerate(rows):
            try:
                order.append((self.shape(row), self.length(row), index))
            except Exception as error:
                row.fail(self.name, _failure(error).reason)
        self._watch([row for row in rows if row.status == "failed"])
        for _, same in groupby(sorted(order), lambda item: item[0]):
            yield from chunks([rows[index] for _, _, index in same], self.batch_size)

    def _prepared(self, threads: ThreadPoolExecutor, rows: list[ImageRecord]) -> Iterator[Batch[Prepared]]:
        """Yield each batch with its inputs, one batch ahead, so that memory holds two batches at most."""
        ahead = None
        for batch in self.batches(rows):
            ready, ahead = ahead, (batch, [threads.submit(self.prepare, row) for row in batch])
            if ready:
                yield ready
        if ahead:
            yield ahead

    def _run(self, rows: list[ImageRecord], inputs: list[Future[Prepared]]) -> list[tuple[ImageRecord, Output]]:
        """Return each row that did not fail, with its output."""
        shape = self.shape(rows[0])
        size = self._fits.get(shape, len(rows))
        if len(rows) > size:
            parts = zip(chunks(rows, size), chunks(inputs, size), strict=True)
            return [pair for part in parts for pair in self._run(*part)]
        outputs = self._try(rows, inputs)
        if isinstance(outputs, _Failure) and outputs.out_of_memory:
            import torch

            # This stands outside the exception handler: by now the exception is freed, and the batch's tensors with it.
            torch.cuda.empty_cache()
            if len(rows) == 1:
                self.tight = True
                outputs = self._try(rows, inputs)
                self.tight = False
        if not isinstance(outputs, _Failure):
            return list(zip(rows, outputs, strict=True))
        if len(rows) == 1:
            rows[0].fail(self.name, outputs.reason)
            return []
        half = len(rows) // 2
        if outputs.out_of_memory:
            self._fits[shape] = half
        pairs = []
        for part, part_inputs in zip(chunks(rows, half), chunks(inputs, half), strict=True):
            pairs += self._run(part, part_inputs)
            if outputs.out_of_memory and any(row.status == "failed" for row in part):
                self._fits[shape] = half  # one image was too large by itself, so the others need no smaller batches
        return pairs

    def _try(self, rows: list[ImageRecord], inputs: list[Future[Prepared]]) -> list[Output] | _Failure:
        try:
            return self.process(rows, [future.result() for future in inputs])
        except Exception as error:
            return _failure(error)

    def _settle(self, batch: list[ImageRecord], finished: Finished) -> None:
        for row, future in finished:
            try:
                future.result()
            except Exception as error:
                row.fail(self.name, _failure(error).reason)
        self._watch(batch)

    def _watch(self, rows: list[ImageRecord]) -> None:
        """Count the failed rows; raise `StageBroken` when `breaker` images in a row have failed in this stage."""
        for row in rows:
            if row.status != "failed":
                self._in_a_row = 0
                continue
            self.failed += 1
            # Two failures say nothing about this stage: a file that was missing when the plan was made, and a failure
            # that an earlier run noted for another stage.
            self._in_a_row += row.place.size != MISSING and row.stage == self.name
            if 0 < self.breaker <= self._in_a_row:
                rule = f"{self._in_a_row} images in a row failed, the last one ({row.source}) with: {row.reason}"
                remedy = "correct the cause and run the same command again; if it is the images, go on with `breaker` 0"
                more = "images that were set aside are tried again with `retry_failed`"
                raise StageBroken("stage", self.name, rule, f"{remedy}; {more}")


class _Failure(NamedTuple):
    reason: str
    out_of_memory: bool


_MEMORY_SIGNS = ("CUDA error: out of memory", "ALLOC_FAILED", "Failed to allocate memory for requested buffer")
"""Texts of out-of-memory errors that torch's allocator does not raise: pinned memory, cuBLAS, cuDNN, ONNX Runtime."""


def _failure(error: Exception) -> _Failure:
    """Return the error of an image as text; raise the error again if the user or the machine caused it."""
    kind = type(error).__name__  # torch's errors are recognized by name, because not every stage imports torch
    memory = kind == "OutOfMemoryError" or any(sign in str(error) for sign in _MEMORY_SIGNS)
    # After any other AcceleratorError, this process can't use the GPU any more.
    if isinstance(error, (UserError, OSError)) or (kind == "AcceleratorError" and not memory):
        raise error
    return _Failure(f"{kind}: {error}", memory)


def chunks(rows: list[Item], size: int) -> list[list[Item]]:
    """Split `rows` into lists of `size`; the last one may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
