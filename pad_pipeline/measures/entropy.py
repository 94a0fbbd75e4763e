"""Compression: the von Neumann entropy of a set of embeddings, of one image or of many."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def von_neumann_entropy(vectors: Tensor, center: bool = False) -> Tensor:
    """H = -sum_i l_i ln l_i over the eigenvalues l of rho = X X^T / tr(X X^T), in nats.

    rho is the Gram matrix of the vectors with its trace made 1 (arXiv 2505.17316 names the measure and leaves
    normalization and pooling open). Of X X^T and X^T X, whose eigenvalues other than 0 are the same, the smaller is
    taken. 0 where all vectors point one way, at most ln min(n, d), which orthogonal vectors of one length reach.

    Args:
        vectors: `[..., n, d]`, a set each.
        center: take the set's mean away first.

    Returns:
        `[...]` float64; 0 for a set of zeros.
    """
    rows = vectors.double()
    if center:
        rows = rows - rows.mean(-2, keepdim=True)
    wide = rows.shape[-1] > rows.shape[-2]
    return entropy_of(rows @ rows.mT if wide else rows.mT @ rows)


def entropy_of(gram: Tensor) -> Tensor:
    """As above, of Gram matrices `[..., m, m]` in float64."""
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    shares = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    return torch.special.entr(shares).sum(-1)


class PooledEntropy:
    """The same over all vectors of many sets, of which only the `[d, d]` Gram matrix is kept.

    The bound is ln d, another one before and after a projector that changes d: the difference of two pooled entropies
    is not on one scale, as that of single images is.
    """

    def __init__(self, width: int, center: bool = False) -> None:
        self.width, self.center = width, center
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._gram: Tensor = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Take vectors `[..., d]`."""
        rows = vectors.flatten(0, -2).double()
        self._take(len(rows), rows.sum(0), rows)

    def add_mixed(self, mix: Tensor, basis: Tensor) -> None:
        """Take the vectors `mix @ basis`, of `[n, L]` and `[L, d]`, for a fraction of what `add` would cost: their
        Gram matrix is B^T (M^T M) B."""
        shares = mix.double()
        values, directions = torch.linalg.eigh(shares.mT @ shares)
        rows = (values.clamp_min(0).sqrt()[:, None] * directions.mT).to(basis.device) @ basis.double()
        self._take(len(shares), shares.sum(0).to(basis.device) @ basis.double(), rows)

    def _take(self, count: int, total: Tensor, rows: Tensor) -> None:
        self.count += count
        self._sum = self._sum + total
        self._gram = self._gram.to(rows.device).addmm_(rows.mT, rows)

    def entropy(self) -> float:
        """In nats; NaN before the first vector."""
        if not self.count:
            return math.nan
        gram = self._gram
        if self.center and isinstance(self._sum, Tensor):
            gram = gram - torch.outer(self._sum, self._sum) / self.count
        return float(entropy_of(gram))
