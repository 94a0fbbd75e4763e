"""Choose the samples of each step. The choice depends only on the seed and the step, so all ranks make the same
choice, and a continued training repeats it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]

MEGABATCH = 50
"""The number of batches whose samples are sorted by length together."""


class SampleOrder:
    """A random order of samples. Each epoch contains each sample once, and has its own order.

    Args:
        numbers: int `[N]`, the numbers of the samples.
        batch_size: number of samples in one optimizer step, over all ranks; at most N.
        seed: seed of the order.
        lengths: int, the approximate length of each sample, by its number. If given, samples of similar length, all
            with an image or all without, share a step, as in LLaVA's `group_by_modality_length`. This saves
            padding.
        with_image: bool, whether a sample has an image, by its number; by default all have one.
    """

    def __init__(
        self, numbers: Ints, batch_size: int, seed: int, lengths: Ints | None = None,
        with_image: npt.NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        self.numbers, self.batch_size, self.seed = numbers, batch_size, seed
        self.lengths, self.with_image = lengths, with_image
        self._epoch = lru_cache(2)(self._arranged)

    def step(self, step: int) -> Ints:
        """Return the numbers of a step's samples, int `[batch_size]`. A step may contain the end of one epoch and the
        start of the next."""
        first, samples = step * self.batch_size, len(self.numbers)
        last = first + self.batch_size
        parts = [
            self._epoch(epoch)[max(first - epoch * samples, 0) : min(last - epoch * samples, samples)]
            for epoch in range(first // samples, (last - 1) // samples + 1)
        ]
        return np.concatenate(parts)

    def _arranged(self, epoch: int) -> Ints:
        """Return the numbers of all samples, int `[N]`, in the order of one epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        shuffled = self.numbers[generator.permutation(len(self.numbers))]
        if self.lengths is None:
            return shuffled
        # The first `head` samples complete the last batch of the previous epoch.
        size, head = self.batch_size, -epoch * len(shuffled) % self.batch_size
        with_image = np.ones(len(shuffled), bool) if self.with_image is None else self.with_image[shuffled]
        # Make whole batches of samples of similar length, all with an image or all without.
        batches: list[Ints] = []
        left: list[Ints] = []
        for members in (shuffled[with_image], shuffled[~with_image]):
            whole = len(members) // size * size
            for start in range(0, whole, MEGABATCH * size):
                mega = members[start : min(start + MEGABATCH * size, whole)]
                # A stable sort keeps samples of equal length in their random order.
                batches += np.split(mega[np.argsort(-self.lengths[mega], kind="stable")], len(mega) // size)
            left.append(members[whole:])
        # Put the samples that are left over at both ends, so that the batches start at multiples of the batch size.
        generator.shuffle(batches)
        rest = generator.permutation(np.concatenate(left))
        while len(rest) < min(head, len(shuffled)):
            rest = np.concatenate([rest, batches.pop()])
        return np.concatenate([rest[:head], *batches, rest[head:]])
