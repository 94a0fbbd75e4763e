"""Examples -> micro-batches, decoded ahead of the model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_pipeline.training.examples import Example, Examples, Sight
from pad_pipeline.training.order import Order
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.template import IMAGE


class Batch(NamedTuple):
    """A micro-batch of B sequences of T tokens, I of them with an image."""

    keys: list[str]
    ids: Tensor
    """`[B, T]` token ids, padded at the right; 0 where a vision token goes."""
    pixels: Tensor
    """`[I, 3, size, size]`."""
    vision_at: Tensor
    """`[I * M]`: the places of the vision tokens in the flattened ids."""
    predicting: Tensor
    """`[N]`: the places in the flattened ids after which a supervised token comes. Indices, because a mask would make
    the GPU wait for the CPU to count it."""
    targets: Tensor
    """`[N]`, those tokens."""
    coverage: Tensor
    """uint8 `[R, grid * grid]`, the regions of all images one after another."""
    embeds: Tensor
    """`[R, d]`."""
    image: Tensor
    """`[R]`, the image that each region belongs to."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        moved = (part.to(device, non_blocking=True) for part in self[1:])
        return Batch(self.keys, *moved)


class Step(NamedTuple):
    """What one rank computes of a step."""

    parts: list[Batch]
    problems: list[tuple[str, str]]
    """Keys of the samples from which nothing can be learned, with the reason."""


def collate(examples: list[Example], sight: Sight) -> Batch:
    """Stack examples, at least one; texts are padded to the longest."""
    rows = [_expanded(example, sight.tokens) for example in examples]
    ids = torch.zeros(len(rows), max(1, max(len(tokens) for tokens, *_ in rows)), dtype=torch.long)
    vision_at: list[np.ndarray] = []
    predicting: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for row, (tokens, vision, supervised) in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        start = row * ids.shape[1]
        vision_at.append(start + vision)
        predicting.append(start + supervised - 1)
        targets.append(tokens[supervised])
    images = [example.pixels for example in examples if example.pixels is not None]
    with_image = [example for example in examples if example.pixels is not None]
    return Batch(
        [example.key for example in examples],
        ids,
        torch.stack(images) if images else torch.zeros(0, 3, sight.view.size, sight.view.size),
        _joined(vision_at),
        _joined(predicting),
        _joined(targets),
        torch.from_numpy(np.concatenate([example.coverage for example in with_image or examples])),
        torch.from_numpy(np.concatenate([example.embeds for example in with_image or examples])),
        torch.repeat_interleave(
            torch.arange(len(with_image)),
            torch.tensor([len(example.coverage) for example in with_image], dtype=torch.long),
        ),
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _expanded(example: Example, vision_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids with a 0 for each vision token; the places of these; the places of the supervised tokens."""
    ids, supervised = np.array(example.text.ids, np.int64), np.array(example.text.supervised, bool)
    times = np.where(ids == IMAGE, vision_tokens, 1)
    ids, supervised = np.repeat(ids, times), np.repeat(supervised, times)
    vision = np.flatnonzero(ids == IMAGE)
    return np.where(ids == IMAGE, 0, ids), vision, np.flatnonzero(supervised)


def steps(
    examples: Examples, order: Order, settings: TrainSettings, span: range, rank: int = 0, world: int = 1
) -> Iterator[Step]:
    """What a rank computes in each step of `span`; images are decoded ahead in threads, two steps' worth at most.

    Long texts go together, so that a micro-batch is padded little; the step's losses do not ask for an order.
    """
    ahead: list[tuple[int, list[Any]]] = []
    upcoming = iter(span)
    with ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="loader") as threads:
        try:
            for _ in span:
                while len(ahead) < 2 and (later := next(upcoming, None)) is not None:
                    numbers = order.step(later)
                    mine = numbers[rank::world].tolist()
                    most = -(-len(numbers) // world)
                    ahead.append((most, [threads.submit(examples.__getitem__, number) for number in mine]))
                most, futures = ahead.pop(0)
                ready = [future.result() for future in futures]
                problems = [(example.key, example.problem) for example in ready if example.problem]
                ready.sort(key=lambda example: -len(example.text.ids))
                parts = [
                    collate(ready[at : at + settings.micro_batch] or [examples.nothing], examples.sight)
                    for at in range(0, most, settings.micro_batch)  # as many on each rank: they may meet in each
                ]
                yield Step(parts, problems)
        finally:
            threads.shutdown(cancel_futures=True)
