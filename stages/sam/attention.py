"""SAM's attention in forms that fused kernels can run: without a matrix of scores in memory.

In the encoder, the score of query (h, w) and key (h', w') has a bias q . R_h[h - h'] + q . R_w[w - w'] (decomposed
relative positions, arXiv 2112.01526). Upstream writes these biases out: for 64 x 64 tokens a matrix of 4096 x 4096 for
each head. But the bias is a product itself: of the query's biases to all rows and columns with a one-hot code of the
key's row and column. Appended to queries and keys, it is part of their product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_STEP = 8
"""Fused kernels want the width of a head to be a multiple of this."""


class RelativeAttention(nn.Module):
    """Multi-head self-attention over a grid of tokens, with the parameters of upstream's `Attention`.

    Args:
        dim: channels.
        heads: of `dim / heads` channels each.
        side: tokens along an edge of the grid.
    """

    keys: Tensor

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.padding = -(dim // heads + 2 * side) % KERNEL_STEP
        self.register_buffer("keys", _row_and_column(side), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, side, side, dim]` -> the same."""
        batch, side, _, dim = x.shape
        width = dim // self.heads
        q, k, v = self.qkv(x).view(batch, side * side, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        grid = q.unflatten(2, (side, side))  # [B, heads, side, side, width]
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _by_distance(self.rel_pos_h, side)).flatten(2, 3)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _by_distance(self.rel_pos_w, side)).flatten(2, 3)
        # The scale is in the queries: the biases are not scaled.
        queries = F.pad(torch.cat([q * width**-0.5, rows, columns], -1), (0, self.padding))
        keys = torch.cat([k, self.keys.to(k.dtype).expand(*k.shape[:2], -1, -1)], -1)
        keys = F.pad(keys, (0, self.padding))
        values = F.pad(v, (0, queries.shape[-1] - width))  # narrower values would fall back to the unfused path
        x = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :width]
        return self.proj(x.transpose(1, 2).reshape(batch, side, side, dim))


class CrossAttention(nn.Module):
    """Multi-head attention between the decoder's tokens and the image's, with the parameters and the signature of
    upstream's `transformer.Attention`."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads = original.num_heads
        self.q_proj, self.k_proj, self.v_proj = original.q_proj, original.k_proj, original.v_proj
        self.out_proj = original.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[B, queries, d]`, `[B, keys, d]`, `[B, keys, d]` -> `[B, queries, d]`."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def _by_distance(positions: Tensor, side: int) -> Tensor:
    """Row i, column j: the position for distance i - j. `[2 * side - 1, c]` -> `[side, side, c]`."""
    place = torch.arange(side, device=positions.device)
    return positions[place[:, None] - place[None] + side - 1]


def _row_and_column(side: int) -> Tensor:
    """Of each token, its row and its column as one-hot codes: `[side * side, 2 * side]`."""
    one = torch.eye(side)
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], 1)
