"""Collate examples into micro-batches, and decode their images in threads ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_pipeline.training.examples import Example, Examples, Sight
from pad_pipeline.training.order import Ints
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.template import IMAGE


class Batch(NamedTuple):
    """A micro-batch of B sequences of T tokens, with I images of M vision tokens each, and R regions."""

    keys: list[str]
    """Names of the B samples."""
    ids: Tensor
    """int64 `[B, T]`: token ids, padded at the right; 0 where a vision token goes."""
    pixels: Tensor
    """float32 `[I, 3, size, size]`, normalized."""
    vision_at: Tensor
    """int64 `[I * M]`: the positions of the vision tokens in the flattened ids."""
    predicting: Tensor
    """int64 `[N]`: the positions in the flattened ids after which a supervised token comes. They are indices, because
    the GPU would have to wait for the CPU to count a mask."""
    targets: Tensor
    """int64 `[N]`: the supervised tokens."""
    coverage: Tensor
    """uint8 `[R, grid * grid]`: the regions of all images, one after another, in 255ths of each patch."""
    embeds: Tensor
    """float16 `[R, d]`: the label embedding of each region."""
    image: Tensor
    """int64 `[R]`: the image (a row of `pixels`) that each region belongs to."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch with all tensors on `device`."""
        return Batch(self.keys, *(part.to(device, non_blocking=True) for part in self[1:]))


class Step(NamedTuple):
    """The part of one optimizer step that one rank computes."""

    parts: list[Batch]
    """The micro-batches, in the order in which they are computed."""
    problems: list[tuple[str, str]]
    """Keys of the samples from which nothing can be learned, each with the reason."""


def collate(examples: list[Example], sight: Sight) -> Batch:
    """Stack one or more examples into a batch, and pad their texts to the longest one."""
    rows = [_expanded(example, sight.tokens) for example in examples]
    ids = torch.zeros(len(rows), max(1, max(len(tokens) for tokens, *_ in rows)), dtype=torch.long)
    vision_at, predicting, targets = [], [], []
    for row, (tokens, vision, supervised) in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        start = row * ids.shape[1]
        vision_at.append(start + vision)
        predicting.append(start + supervised - 1)
        targets.append(tokens[supervised])
    images = [example.pixels for example in examples if example.pixels is not None]
    with_image = [example for example in examples if example.pixels is not None]
    coverage = [example.coverage for example in with_image or examples]
    embeds = [example.embeds for example in with_image or examples]
    image = np.repeat(np.arange(len(with_image)), [len(example.coverage) for example in with_image])
    return Batch(
        [example.key for example in examples],
        ids,
        torch.stack(images) if images else torch.zeros(0, 3, sight.view.size, sight.view.size),
        *(
            torch.from_numpy(np.concatenate(part))
            for part in (vision_at, predicting, targets, coverage, embeds, [image])
        ),
    )


def _expanded(example: Example, vision_tokens: int) -> tuple[Ints, Ints, Ints]:
    """Replace the image's mark among an example's token ids by one 0 for each vision token. Return the ids, the
    positions of the vision tokens in them, and the positions of the supervised tokens."""
    ids, supervised = np.array(example.text.ids, np.int64), np.array(example.text.supervised, bool)
    repeats = np.where(ids == IMAGE, vision_tokens, 1)
    ids, supervised = np.repeat(ids, repeats), np.repeat(supervised, repeats)
    vision = np.flatnonzero(ids == IMAGE)
    return np.where(ids == IMAGE, 0, ids), vision, np.flatnonzero(supervised)


def steps(
    examples: Examples,
    order: Callable[[int], Ints],
    settings: TrainSettings,
    span: range,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Step]:
    """Yield the micro-batches of one rank for each step of `span`; `order` returns the numbers of a step's samples.

    Images are decoded ahead of the model in threads, those of two steps at most. Texts of like length share a
    micro-batch, so that little is padded; a step's losses do not depend on the order of its samples.
    """
    ahead: list[tuple[int, list[Future[Example]]]] = []
    upcoming = iter(span)
    with ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="loader") as threads:
        try:
            for _ in span:
                # Start to decode the next steps.
                while len(ahead) < 2 and (later := next(upcoming, None)) is not None:
                    numbers = order(later)
                    of_rank = [threads.submit(examples.__getitem__, n) for n in numbers[rank::world].tolist()]
                    ahead.append((-(-len(numbers) // world), of_rank))
                # Wait for this step's samples, and collate them.
                most, futures = ahead.pop(0)
                ready = [future.result() for future in futures]
                problems = [(example.key, example.problem) for example in ready if example.problem]
                ready.sort(key=lambda example: -len(example.text.ids))
                # Every rank runs the same number of micro-batches, because each one may contain a collective.
                parts = [
                    collate(ready[at : at + settings.micro_batch] or [examples.nothing], examples.sight)
                    for at in range(0, most, settings.micro_batch)
                ]
                yield Step(parts, problems)
        finally:
            threads.shutdown(cancel_futures=True)
