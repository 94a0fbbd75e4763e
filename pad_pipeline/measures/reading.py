"""Read from vision tokens, by linear regression, where a token is and what it shows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-3
"""The strength of the ridge regression: this share of the tokens' mean variance is added to each variance."""
MOST = 16_384
"""The highest number of tokens that a reading is scored on: 268 MB with 4096 numbers each."""


class Reading(NamedTuple):
    """How well a linear function reads tokens of images that it was not fitted to; NaN if nothing could be read."""

    row: float
    """The R2 of the row: 1 minus the squared errors divided by those of the mean row."""
    column: float
    """The R2 of the column."""
    label: float
    """The share of tokens whose label has the highest value, of those that show a single label."""
    label_by_chance: float
    """The share that the most frequent label alone would reach."""


class LinearReader:
    """Fits a ridge regression of row, column and label to the tokens of half of the images, and scores it on the rest.

    The half is chosen by the images' keys, so that it does not depend on their order. Memory does not grow with the
    number of images: the fit keeps sums, and the score at most `MOST` tokens.

    Args:
        labels: the number of labels; 0 to read the place alone.
        total: sums a tensor over all ranks, if several read images. Labels are read by one rank alone.
    """

    def __init__(self, labels: int = 0, total: Callable[[Tensor], Tensor] = lambda numbers: numbers) -> None:
        self.labels, self.total = labels, total
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, key: str, tokens: Tensor, label: Tensor | None = None) -> None:
        """Add an image's tokens `[M, d]`, row by row from the top left on a square grid, and the label that each token
        alone shows, int64 `[M]`, -1 for none."""
        side = round(len(tokens) ** 0.5)
        if side * side != len(tokens):
            raise ValueError(f"{len(tokens)} tokens are no square grid")
        at = torch.arange(len(tokens), device=tokens.device)
        place = torch.stack([at // side, at % side], 1).float() / side
        label = torch.full_like(at, -1) if label is None else label.to(tokens.device)
        if zlib.crc32(key.encode()) % 2:
            self._fit("place", tokens, place)
            known = label >= 0
            if self.labels:
                self._fit("label", tokens[known], F.one_hot(label[known], self.labels).float())
        elif sum(len(kept[0]) for kept in self._kept) < MOST:
            self._kept.append((tokens.float().cpu(), place.cpu(), label.cpu()))

    def _fit(self, name: str, tokens: Tensor, wanted: Tensor) -> None:
        """Add to the sums of products: of tokens with tokens, and of tokens with targets, both with a constant 1."""
        one = torch.cat([tokens.float(), tokens.new_ones(len(tokens), 1, dtype=torch.float32)], 1)
        new = (one.T @ one).double(), (one.T @ wanted).double()
        old = self._sums.get(name)
        self._sums[name] = (old[0] + new[0], old[1] + new[1]) if old else new

    def result(self, width: int = 0, device: torch.device | str = "cpu") -> Reading:
        """Solve the regressions, and score them. A rank without images needs the `width` d of the tokens, and the
        `device` of the others."""
        nothing = torch.zeros(width + 1, width + 1), torch.zeros(width + 1, 2)
        products, with_wanted = self._sums.get("place", [part.double().to(device) for part in nothing])
        self._sums["place"] = self.total(products), self.total(with_wanted)
        place = None
        scores = torch.zeros(4, 2, dtype=torch.float64)  # errors, count, sums and squares of the place, for both axes
        fitted = float(self._sums["place"][0][-1, -1])
        if self._kept and fitted:
            tokens, place, label = (torch.cat(column) for column in zip(*self._kept, strict=True))
            tokens = torch.cat([tokens, torch.ones(len(tokens), 1)], 1)
            errors = (tokens @ self._weights("place") - place).double().square().sum(0)
            wide = place.double()
            scores = torch.stack([errors, torch.full_like(errors, len(place)), wide.sum(0), wide.square().sum(0)])
        errors, count, first, squares = self.total(scores.to(device)).cpu()
        row, column = (1 - errors / (squares - first.square() / count)).tolist() if fitted else (math.nan, math.nan)
        if place is None or "label" not in self._sums or not (label >= 0).any():
            return Reading(row, column, math.nan, math.nan)
        known = label >= 0
        said, shown = (tokens[known] @ self._weights("label")).argmax(1), label[known]
        by_chance = float(shown.bincount().max()) / len(shown)
        return Reading(row, column, float((said == shown).float().mean()), by_chance)

    def _weights(self, name: str) -> Tensor:
        """Return the weights of a regression, the constant last, float32 `[d + 1, targets]`."""
        products, with_wanted = self._sums[name]
        count = products[-1, -1].clamp_min(1)
        means = products[-1, :-1] / count
        variance = products.diagonal()[:-1] / count - means.square()
        ridge = torch.full_like(products.diagonal(), RIDGE * float(variance.mean().clamp_min(1e-9)) * float(count))
        ridge[-1] = 0  # the constant is free
        weights: Tensor = torch.linalg.solve(products + ridge.diag(), with_wanted)
        return weights.float().cpu()
