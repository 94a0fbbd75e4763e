"""Neighbor overlap: the share of a vector's nearest neighbors that remain its neighbors after the projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbors(vectors: Tensor, k: int) -> Tensor:
    """Return each vector's `k` nearest others by cosine: indices, int64 `[..., n, k]`, for vectors `[..., n, d]`."""
    unit = F.normalize(vectors.float(), dim=-1)
    cosine = unit @ unit.mT
    cosine.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return cosine.topk(k, -1).indices


def neighbor_overlap(before: Tensor, after: Tensor, k: int = 10) -> Tensor:
    """Return the mean share of the k nearest neighbors that a vector keeps (arXiv 2509.11986), for each set of vectors.

    `before` are sets of vectors `[..., n, d]`. `after` are the same vectors after the projector, `[..., n, e]`. `k` is
    below n. The result is float32 `[...]`, 0..1, and k / (n - 1) by chance.
    """
    first, second = neighbors(before, k), neighbors(after, k)
    return (first[..., :, None] == second[..., None, :]).any(-1).float().mean((-2, -1))
