"""Decide which samples are in which step.

The answer is a function of the seed and the step alone, so all ranks compute the same one, and so does a training
that goes on after a stop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]

MEGA = 50
"""Number of batches whose samples are sorted by length together, where samples are grouped by length."""


class Order:
    """A random order of the samples: every epoch has each sample once, and an order of its own.

    Args:
        samples: number of samples.
        batch_size: number of samples in one step of the optimizer, over all ranks; at most `samples`.
        seed: seed of the order.
        lengths: int `[samples]`, the approximate length of each sample. Where it is given, samples of like length,
            all with an image or all without, share a step, as in LLaVA's `group_by_modality_length`; a step's texts
            are padded to its longest, so this saves padding.
        with_image: bool `[samples]`, which samples have an image; by default all have.
        numbers: int `[samples]`, the samples' numbers; by default 0, 1, 2 and so on.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, lengths: Ints | None = None,
        with_image: npt.NDArray[np.bool_] | None = None, numbers: Ints | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.lengths, self.with_image = lengths, with_image
        self.numbers: Ints = np.arange(samples) if numbers is None else numbers
        self._epoch = lru_cache(2)(self._arranged)

    def step(self, step: int) -> Ints:
        """Return int `[batch_size]`, the numbers of a step's samples. A step may go from one epoch into the next."""
        first = step * self.batch_size
        last = first + self.batch_size
        parts = [
            self._epoch(epoch)[max(first - epoch * self.samples, 0) : min(last - epoch * self.samples, self.samples)]
            for epoch in range(first // self.samples, (last - 1) // self.samples + 1)
        ]
        return self.numbers[np.concatenate(parts)]

    def _arranged(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return int64 `[samples]`, the positions of the samples in the order of one epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        shuffled = generator.permutation(self.samples)
        if self.lengths is None:
            return shuffled
        # The first `head` samples complete the batch that the previous epoch left unfinished.
        size, head = self.batch_size, -epoch * self.samples % self.batch_size
        with_image = np.ones(self.samples, bool) if self.with_image is None else self.with_image
        # Make whole batches of like length, of samples with an image and of samples without.
        batches: list[Ints] = []
        left: list[Ints] = []
        for kind in (True, False):
            members = shuffled[with_image[shuffled] == kind]
            whole = len(members) // size * size
            for start in range(0, whole, MEGA * size):
                mega = members[start : min(start + MEGA * size, whole)]
                # A stable sort keeps samples of equal length in their random order.
                batches += np.split(mega[np.argsort(-self.lengths[mega], kind="stable")], len(mega) // size)
            left.append(members[whole:])
        # Put what is left over at both ends, so that the batches between start at a multiple of the batch size.
        generator.shuffle(batches)
        rest = generator.permutation(np.concatenate(left))
        while len(rest) < min(head, self.samples):
            rest = np.concatenate([rest, batches.pop()])
        return np.concatenate([rest[:head], *batches, rest[head:]]).astype(np.int64)
