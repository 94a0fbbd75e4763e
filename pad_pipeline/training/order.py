"""Choose the samples of each step. The choice depends only on the seed and the step, so all ranks make the same
choice, and a continued training repeats it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]

MEGABATCH = 50
"""The number of batches whose samples are sorted by length together."""


_PIECE = 1 << 20


def shuffled(generator: np.random.Generator, count: int) -> Ints:
    """Return the numbers below `count` in the order of `generator.permutation(count)`, in half the memory."""
    kind: type[np.integer[Any]] = np.uint32 if count < 1 << 32 else np.int64
    numbers: Ints = np.arange(count, dtype=kind)
    generator.shuffle(numbers)
    return numbers


class SampleOrder:
    """A random order of samples. Each epoch contains each sample once, and has its own order.

    One epoch is in memory at a time, 4 bytes for each sample.

    Args:
        count: number of samples.
        batch_size: number of samples in one optimizer step, over all ranks; at most that of the ordered samples.
        seed: seed of the order.
        lengths: int, the approximate length of each sample, by its number. If given, samples of similar length, all
            with an image or all without, share a step, as in LLaVA's `group_by_modality_length`. This saves
            padding.
        with_image: bool, whether a sample has an image, by its number; by default all have one.
        left_out: int, sorted, the numbers of the samples that are not ordered; none by default.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, lengths: Ints | None = None,
        with_image: npt.NDArray[np.bool_] | None = None, left_out: Ints | None = None,
    ) -> None:  # fmt: skip
        self.left_out: Ints = np.arange(0) if left_out is None else left_out
        self.samples, self.batch_size, self.seed = count - len(self.left_out), batch_size, seed
        self.lengths, self.with_image = lengths, with_image
        self._held: tuple[int, Ints] = (-1, np.arange(0))

    def step(self, step: int) -> Ints:
        """Return the numbers of a step's samples, int `[batch_size]`. A step may contain the end of one epoch and the
        start of the next."""
        first, samples = step * self.batch_size, self.samples
        last = first + self.batch_size
        # Copies, because a view would keep its whole epoch in memory.
        parts = [
            self._epoch(epoch)[max(first - epoch * samples, 0) : min(last - epoch * samples, samples)].copy()
            for epoch in range(first // samples, (last - 1) // samples + 1)
        ]
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> Ints:
        if self._held[0] != epoch:
            self._held = -1, np.arange(0)  # free the memory first
            self._held = epoch, self._arranged(epoch)
        return self._held[1]

    def _numbers(self, generator: np.random.Generator) -> Ints:
        """Return the numbers of all ordered samples, shuffled."""
        numbers = shuffled(generator, self.samples)
        if len(self.left_out):
            gaps = self.left_out - np.arange(len(self.left_out))
            for start in range(0, len(numbers), _PIECE):  # in pieces, because the numbers of gaps take 8 bytes each
                piece = numbers[start : start + _PIECE]
                piece += np.searchsorted(gaps, piece, "right").astype(piece.dtype)
        return numbers

    def _arranged(self, epoch: int) -> Ints:
        """Return the numbers of all samples, int `[N]`, in the order of one epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        numbers = self._numbers(generator)
        if self.lengths is None:
            return numbers
        # The first `head` samples complete the last batch of the previous epoch.
        size, head = self.batch_size, -epoch * len(numbers) % self.batch_size
        with_image = np.ones(len(numbers), bool) if self.with_image is None else self.with_image[numbers]
        # Make whole batches of samples of similar length, all with an image or all without.
        batches: list[Ints] = []
        left: list[Ints] = []
        for members in (numbers[with_image], numbers[~with_image]):
            whole = len(members) // size * size
            for start in range(0, whole, MEGABATCH * size):
                mega = members[start : min(start + MEGABATCH * size, whole)]
                # A stable sort keeps samples of equal length in their random order.
                batches += np.split(mega[np.argsort(-self.lengths[mega], kind="stable")], len(mega) // size)
            left.append(members[whole:])
        # Put the samples that are left over at both ends, so that the batches start at multiples of the batch size.
        generator.shuffle(batches)
        rest = generator.permutation(np.concatenate(left))
        while len(rest) < min(head, len(numbers)):
            rest = np.concatenate([rest, batches.pop()])
        return np.concatenate([rest[:head], *batches, rest[head:]])
