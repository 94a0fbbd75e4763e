"""Whether neighbors stay neighbors: k-nearest-neighbor overlap before and after the projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbors(vectors: Tensor, k: int) -> Tensor:
    """int64 `[..., n, k]`: for each of `[..., n, d]` the others with the highest cosine."""
    unit = F.normalize(vectors.float(), dim=-1)
    cosine = unit @ unit.mT
    cosine.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return cosine.topk(k, -1).indices


def neighbor_overlap(before: Tensor, after: Tensor, k: int = 10) -> Tensor:
    """The share of each vector's k nearest neighbors that it keeps (arXiv 2509.11986), the mean over a set.

    Args:
        before: `[..., n, d]`.
        after: `[..., n, e]`, the same vectors behind the projector.
        k: fewer than n.

    Returns:
        `[...]`, 0..1; by chance k / (n - 1).
    """
    first, second = neighbors(before, k), neighbors(after, k)
    return (first[..., :, None] == second[..., None, :]).any(-1).float().mean((-2, -1))
