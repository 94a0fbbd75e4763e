"""Neighbor overlap: how many of a vector's k nearest neighbors remain its neighbors after the projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbors(vectors: Tensor, k: int) -> Tensor:
    """Return, for each of the vectors `[..., n, d]`, the `k` others with the highest cosine: int64 `[..., n, k]`."""
    unit = F.normalize(vectors.float(), dim=-1)
    cosine = unit @ unit.mT
    cosine.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return cosine.topk(k, -1).indices


def neighbor_overlap(before: Tensor, after: Tensor, k: int = 10) -> Tensor:
    """Return the share of each vector's k nearest neighbors that it keeps (arXiv 2509.11986), as a mean over each set.

    Args:
        before: sets of vectors, `[..., n, d]`.
        after: the same vectors after the projector, `[..., n, e]`.
        k: the number of neighbors, below n.

    Returns:
        float32 `[...]`, 0..1; chance alone gives k / (n - 1).
    """
    first, second = neighbors(before, k), neighbors(after, k)
    return (first[..., :, None] == second[..., None, :]).any(-1).float().mean((-2, -1))
