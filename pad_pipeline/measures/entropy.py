"""The von Neumann entropy of embeddings, a measure of compression: for each image, or for many images pooled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def von_neumann_entropy(vectors: Tensor, center: bool = False) -> Tensor:
    """Return the entropy H = -sum_i l_i ln l_i in nats, where l are the eigenvalues of rho = X X^T / tr(X X^T).

    rho is the Gram matrix of the vectors, scaled to trace 1. arXiv 2505.17316 names the measure, and leaves
    normalization and pooling open. H is 0 if all vectors have the same direction. Its maximum is ln min(n, d), for
    orthogonal vectors of equal length.

    Args:
        vectors: sets of vectors, `[..., n, d]`.
        center: whether to subtract the mean of each set first.

    Returns:
        float64 `[...]`; 0 for a set of zeros.
    """
    rows = vectors.double()
    if center:
        rows = rows - rows.mean(-2, keepdim=True)
    wide = rows.shape[-1] > rows.shape[-2]  # X X^T and X^T X have the same eigenvalues apart from zeros
    return entropy_of(rows @ rows.mT if wide else rows.mT @ rows)


def entropy_of(gram: Tensor) -> Tensor:
    """Return the von Neumann entropy in nats, float64 `[...]`, from Gram matrices, float64 `[..., m, m]`."""
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    shares = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(-1)


class PooledEntropy:
    """Computes the von Neumann entropy of the vectors of many sets together; it keeps only their `[d, d]` Gram matrix.

    The maximum is ln min(n, d) for n vectors. A projector that changes d changes the maximum, so pooled entropies
    before and after it are on different scales. Those of single images are not.

    Args:
        width: the width d of the vectors.
    """

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._gram = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors, `[..., d]`."""
        rows = vectors.flatten(0, -2).double()
        self._accumulate(len(rows), rows.sum(0), rows)

    def add_mixed(self, mix: Tensor, basis: Tensor) -> None:
        """Add the vectors M B, for a mix M `[n, L]` and a basis B `[L, d]`, faster than `add(M @ B)`.

        Their Gram matrix is B^T (M^T M) B, where M^T M is only `[L, L]`.
        """
        shares = mix.double()
        values, directions = torch.linalg.eigh(shares.mT @ shares)
        rows = (values.clamp_min(0).sqrt()[:, None] * directions.mT).to(basis.device) @ basis.double()
        self._accumulate(len(shares), shares.sum(0).to(basis.device) @ basis.double(), rows)

    def _accumulate(self, count: int, total: Tensor, rows: Tensor) -> None:
        self.count += count
        self._sum = self._sum.to(rows.device) + total
        self._gram = self._gram.to(rows.device).addmm_(rows.mT, rows)

    def entropy(self, center: bool = False) -> float:
        """Return the entropy in nats; NaN without vectors. `center`: whether to subtract the mean of all vectors."""
        if not self.count:
            return math.nan
        shift = torch.outer(self._sum, self._sum) / self.count if center else 0.0
        return float(entropy_of(self._gram - shift))
