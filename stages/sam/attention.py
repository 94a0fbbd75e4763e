"""The attention modules of SAM in forms that fused kernels can run, without a matrix of scores in memory.

In the encoder, the score of query (h, w) and key (h', w') has a bias q . R_h[h - h'] + q . R_w[w - w'] (decomposed
relative positions, arXiv 2112.01526). Upstream stores these biases, 4096 x 4096 for each head with 64 x 64 tokens.
Here, each query is extended by its biases for all rows and columns, and each key by the one-hot codes of its row and
column. The dot product of the longer vectors is the score with the bias.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_STEP = 8
"""Fused kernels need heads whose width is a multiple of this."""
FEW_KEYS = 16
"""On a CPU, attention over at most this many keys does without the fused kernel."""


class RelativeAttention(nn.Module):
    """Multi-head self-attention over `side` x `side` tokens, with the parameters of upstream's `Attention`."""

    keys: Tensor
    """The one-hot codes of each token's row and column, `[side * side, 2 * side]`, which extend the keys."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.padding = -(dim // heads + 2 * side) % KERNEL_STEP
        one = torch.eye(side)
        keys = torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], 1)
        self.register_buffer("keys", keys, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens, of the same shape as `x`: `[B, side, side, dim]`."""
        batch, side, _, dim = x.shape
        width = dim // self.heads
        q, k, v = self.qkv(x).view(batch, side * side, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        grid = q.unflatten(2, (side, side))  # [B, heads, side, side, width]
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _by_distance(self.rel_pos_h, side)).flatten(2, 3)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _by_distance(self.rel_pos_w, side)).flatten(2, 3)
        # q is scaled here, and not in the kernel, which would scale the biases, too.
        queries = F.pad(torch.cat([q * width**-0.5, rows, columns], -1), (0, self.padding))
        keys = F.pad(torch.cat([k, self.keys.to(k.dtype).expand(*k.shape[:2], -1, -1)], -1), (0, self.padding))
        values = F.pad(v, (0, queries.shape[-1] - width))  # there is no fused kernel for narrower values
        x = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :width]
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, side, side, dim))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention between the tokens of the decoder and of the image.

    It replaces upstream's `transformer.Attention`, with the layers and the signature of the original.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads = original.num_heads
        self.q_proj, self.k_proj, self.v_proj = original.q_proj, original.k_proj, original.v_proj
        self.out_proj = original.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attended values `[B, queries, d]`, for `q` `[B, queries, d]`, `k` and `v` `[B, keys, d]`."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected]
        few_keys = q.device.type == "cpu" and k.shape[1] <= FEW_KEYS < q.shape[1]
        attended = _attend_few(*heads) if few_keys else F.scaled_dot_product_attention(*heads)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


def _attend_few(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of many queries over few keys, by the same formula as `scaled_dot_product_attention`.

    With the many queries as columns, the products use a CPU's vector units fully. The fused kernel takes 7 times as
    long for the 400 tokens of an image and the 7 tokens of a box.
    """
    scores = k @ (q * q.shape[-1] ** -0.5).transpose(-1, -2)  # [B, heads, keys, queries]
    attended: Tensor = v.transpose(-1, -2) @ scores.softmax(-2)
    return attended.transpose(-1, -2)


def _by_distance(positions: Tensor, side: int) -> Tensor:
    """Map the positions of all distances, `[2 * side - 1, c]`, to those of i - j for all i and j, `[side, side, c]`."""
    index = torch.arange(side, device=positions.device)
    return positions[index[:, None] - index[None] + side - 1]
