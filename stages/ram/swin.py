"""The Swin Transformer (v1, arXiv 2103.14030), the image encoder of RAM and RAM++, for a fixed input size.

It has no absolute position embedding.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn


class SwinSettings(BaseModel):
    """The sizes of the encoder. The defaults are those of RAM's Swin-L."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = Field(384, gt=0, le=2048)
    patch: int = Field(4, gt=0, le=2048)
    embed_dim: int = Field(192, gt=0, le=1024)
    depths: list[PositiveInt] = Field([2, 2, 18, 2], min_length=1, max_length=8)
    num_heads: list[PositiveInt] = [6, 12, 24, 48]
    window: int = Field(12, gt=0, le=64)

    @model_validator(mode="after")
    def _consistent(self) -> SwinSettings:
        if len(self.depths) != len(self.num_heads):
            raise ValueError("depths and num_heads must be equally long")
        side = self.image_size // self.patch
        for _ in self.depths:
            if not side or side % min(self.window, side):
                raise ValueError(f"window {self.window} must divide the side of every layer, such as {side}")
            side //= 2
        if any((self.embed_dim << stage) % heads for stage, heads in enumerate(self.num_heads)):
            raise ValueError(
                f"num_heads {self.num_heads} must divide the widths of the layers, from {self.embed_dim} up"
            )
        return self

    @property
    def width(self) -> int:
        """Channels of the output tokens: 1536 for Swin-L."""
        return self.embed_dim << (len(self.depths) - 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows of `window**2` tokens, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the updated tokens `x`, `[B * windows, tokens, dim]`.

        `mask` is added to the scores: 0 or -100, `[windows, tokens, tokens]`. With a mask, windows and heads become one
        dimension, so that the bias broadcasts over the images and is not repeated for each.
        """
        count, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [heads, t, t]
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).flatten(0, 1)  # [windows * heads, t, t]
            q, k, v = (part.reshape(-1, len(bias), tokens, dim // self.heads) for part in (q, k, v))
        bias = bias.to(q.dtype).contiguous().unsqueeze(0)  # fused GPU kernels need contiguous rows
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(x.reshape(count, self.heads, tokens, -1).transpose(1, 2).reshape(count, tokens, dim))
        return out


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each after a LayerNorm and with a residual, over `side**2` tokens.

    With `shifted`, the windows are moved by half their side, unless one window covers the image.
    """

    attn_mask: Tensor | None

    def __init__(self, dim: int, side: int, window: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, self.window, heads)
        self.norm2 = nn.LayerNorm(dim)
        layers = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.GELU(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        mask = _shift_mask(side, self.window, self.shift) if self.shift else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the updated tokens in the shape of `x`, `[B, side * side, dim]`."""
        batch, _, dim = x.shape
        windows = self.norm1(x).view(batch, self.side, self.side, dim)
        if self.shift:
            windows = windows.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(_to_windows(windows, self.window), self.attn_mask)
        grid = _from_windows(windows, self.window, self.side)
        if self.shift:
            grid = grid.roll((self.shift, self.shift), (1, 2))
        x = x + grid.view(batch, -1, dim)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchMerging(nn.Module):
    """Halves the resolution: 2 x 2 neighboring tokens become one token of twice the width."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, side * side, dim]` to float32 `[B, (side / 2)**2, 2 * dim]`."""
        batch, _, dim = x.shape
        # The checkpoint orders the neighbors down before right: (0,0), (1,0), (0,1), (1,1).
        x = x.view(batch, self.side // 2, 2, self.side // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        # These tokens stay float32 under autocast, because all blocks of the next layer add to them.
        merged: Tensor = self.reduction(self.norm(x.reshape(batch, -1, 4 * dim)))
        return merged.float()


class SwinTransformer(nn.Module):
    """The encoder, which maps images to the tokens of the last layer, with their mean in front."""

    def __init__(self, settings: SwinSettings) -> None:
        super().__init__()
        dim, side = settings.embed_dim, settings.image_size // settings.patch
        patches = {"proj": nn.Conv2d(3, dim, settings.patch, settings.patch), "norm": nn.LayerNorm(dim)}
        self.patch_embed = nn.ModuleDict(patches)
        self.layers = nn.Sequential()
        for depth, heads in zip(settings.depths, settings.num_heads, strict=True):
            if self.layers:
                dim, side = 2 * dim, side // 2
            blocks = [SwinBlock(dim, side, settings.window, heads, shifted=bool(i % 2)) for i in range(depth)]
            last = len(self.layers) == len(settings.depths) - 1
            merging = nn.Identity() if last else PatchMerging(dim, side)
            self.layers.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), downsample=merging)))
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images `[B, 3, S, S]` to `[B, 1 + tokens, width]`; token 0 is the mean of the others."""
        x = self.patch_embed["norm"](self.patch_embed["proj"](images).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x))
        return torch.cat([x.mean(1, keepdim=True), x], dim=1)


def _to_windows(x: Tensor, window: int) -> Tensor:
    """Map `[B, height, width, dim]` to `[B * windows, window**2, dim]`."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def _from_windows(x: Tensor, window: int, side: int) -> Tensor:
    """Invert `_to_windows` for a square image: map `[B * windows, window**2, dim]` to `[B, side, side, dim]`."""
    count, dim = side // window, x.shape[-1]
    return x.view(-1, count, count, window, window, dim).transpose(2, 3).reshape(-1, side, side, dim)


def _relative_positions(window: int) -> Tensor:
    """Return the row in the bias table for each pair of tokens of a window, int64 `[window**2, window**2]`."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y[None] + window - 1) * (2 * window - 1) + (x[:, None] - x[None] + window - 1)


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Return the attention mask of shifted windows, float32 `[windows, tokens, tokens]`.

    It is -100 for pairs of tokens that the shift brought into one window from opposite edges of the image, else 0.
    """
    edges = torch.zeros(side, dtype=torch.long)
    edges[side - window : side - shift] = 1
    edges[side - shift :] = 2
    regions = _to_windows((3 * edges[:, None] + edges[None]).view(1, side, side, 1), window).squeeze(-1)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0
