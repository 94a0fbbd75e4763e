"""Which samples are in which step: a function of the seed and the step alone, whoever computes it and wherever it goes
on after a stop."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

MEGA = 50
"""Batches whose samples are sorted by length together, when samples of a kind are grouped."""


class Order:
    """Epoch after epoch, each in an order of its own, every sample once in each.

    Args:
        samples: how many there are.
        batch_size: in one step of the optimizer, over all ranks.
        seed: of the order.
        lengths: `[samples]`, about how long each is; given, samples of like length and kind share a step, as LLaVA's
            `group_by_modality_length` has it: the text of a step is padded to its longest.
        imaged: bool `[samples]`, which of them have an image.
        numbers: int `[samples]`, what the samples are called; 0, 1, 2 and so on by default.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        lengths: np.ndarray | None = None,
        with_image: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.lengths, self.with_image = lengths, with_image
        self.numbers = np.arange(samples) if numbers is None else numbers
        self._epoch = lru_cache(2)(self._arranged)

    def step(self, step: int) -> np.ndarray:
        """int `[batch_size]`: the samples of a step."""
        first = step * self.batch_size
        last = first + self.batch_size
        parts = [
            self._epoch(epoch)[max(first - epoch * self.samples, 0) : min(last - epoch * self.samples, self.samples)]
            for epoch in range(first // self.samples, (last - 1) // self.samples + 1)
        ]
        return self.numbers[np.concatenate(parts)]

    def _arranged(self, epoch: int) -> np.ndarray:
        chance = np.random.default_rng((self.seed, epoch))
        shuffled = chance.permutation(self.samples)
        if self.lengths is None:
            return shuffled
        size, head = self.batch_size, -epoch * self.samples % self.batch_size  # the first end the last epoch's batch
        with_image = np.ones(self.samples, bool) if self.with_image is None else self.with_image
        batches, left = [], []
        for kind in (True, False):
            members = shuffled[with_image[shuffled] == kind]
            whole = len(members) // size * size
            for start in range(0, whole, MEGA * size):
                mega = members[start : min(start + MEGA * size, whole)]
                # Stable, so that equal lengths stay shuffled.
                batches += np.split(mega[np.argsort(-self.lengths[mega], kind="stable")], len(mega) // size)
            left.append(members[whole:])
        chance.shuffle(batches)
        rest = chance.permutation(np.concatenate(left))
        while len(rest) < min(head, self.samples):
            rest = np.concatenate([rest, batches.pop()])
        return np.concatenate([rest[:head], *batches, rest[head:]]).astype(np.int64)


class InOrder(Order):
    """Every sample once, as they come; the last step has what is left.

    Args:
        numbers: of the samples.
        batch_size: in one step.
    """

    def __init__(self, numbers: np.ndarray, batch_size: int) -> None:
        super().__init__(len(numbers), batch_size, 0, numbers=numbers)
        self.steps = -(-self.samples // batch_size)

    def step(self, step: int) -> np.ndarray:
        """The samples of a step."""
        return self.numbers[step * self.batch_size : (step + 1) * self.batch_size]
