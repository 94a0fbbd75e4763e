"""The von Neumann entropy of a set of embeddings, a measure of compression: of one image, or of many pooled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def von_neumann_entropy(vectors: Tensor, center: bool = False) -> Tensor:
    """Return the entropy H = -sum_i l_i ln l_i over the eigenvalues l of rho = X X^T / tr(X X^T), in nats.

    rho is the Gram matrix of the vectors, scaled to trace 1. (arXiv 2505.17316 names the measure, and leaves
    normalization and pooling open.) X X^T and X^T X have the same eigenvalues apart from zeros, so the smaller of the
    two is used. H is 0 where all vectors point the same way, and at most ln min(n, d), for orthogonal vectors of equal
    length.

    Args:
        vectors: sets of vectors, `[..., n, d]`.
        center: whether to subtract the mean of each set first.

    Returns:
        float64 `[...]`; 0 for a set of zeros.
    """
    rows = vectors.double()
    if center:
        rows = rows - rows.mean(-2, keepdim=True)
    wide = rows.shape[-1] > rows.shape[-2]
    return entropy_of(rows @ rows.mT if wide else rows.mT @ rows)


def entropy_of(gram: Tensor) -> Tensor:
    """Return the same entropy for Gram matrices, float64 `[..., m, m]`, as float64 `[...]`."""
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    shares = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(-1)


class PooledEntropy:
    """The von Neumann entropy over the vectors of many sets together; only their `[d, d]` Gram matrix is kept.

    Its upper bound is ln d (or less, for fewer than d vectors). A projector that changes d changes the bound. So the
    pooled entropies before and after it are on different scales, unlike those of single images.

    Args:
        width: the width d of the vectors.
        center: whether to subtract the mean of all vectors.
    """

    def __init__(self, width: int, center: bool = False) -> None:
        self.width, self.center = width, center
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._gram = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors, `[..., d]`."""
        rows = vectors.flatten(0, -2).double()
        self._accumulate(len(rows), rows.sum(0), rows)

    def add_mixed(self, mix: Tensor, basis: Tensor) -> None:
        """Add the vectors M B, with the mix M `[n, L]` and the basis B `[L, d]`, at a fraction of the cost of `add`.

        Their Gram matrix is B^T (M^T M) B, and M^T M is only `[L, L]`.
        """
        shares = mix.double()
        values, directions = torch.linalg.eigh(shares.mT @ shares)
        rows = (values.clamp_min(0).sqrt()[:, None] * directions.mT).to(basis.device) @ basis.double()
        self._accumulate(len(shares), shares.sum(0).to(basis.device) @ basis.double(), rows)

    def _accumulate(self, count: int, total: Tensor, rows: Tensor) -> None:
        self.count += count
        self._sum = self._sum.to(rows.device) + total
        self._gram = self._gram.to(rows.device).addmm_(rows.mT, rows)

    def entropy(self) -> float:
        """Return the entropy in nats; NaN before the first vector."""
        if not self.count:
            return math.nan
        shift = torch.outer(self._sum, self._sum) / self.count if self.center else 0.0
        return float(entropy_of(self._gram - shift))
