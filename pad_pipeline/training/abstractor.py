"""Implement Honeybee's C-Abstractor (arXiv 2312.06742), a projector that reduces the number of tokens by convolutions.

Honeybee builds it from timm's RegNet. The modules here have the same names, so that Honeybee's weights can be loaded.
The outputs equal those of timm 0.9.8, which Honeybee uses, and of later versions up to 1.0.31.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_pipeline.errors import UserError

HONEYBEE_TOKENS = 144
"""Number of vision tokens (12 x 12) of the C-Abstractor in Honeybee's 7B models."""


class CAbstractor(nn.Module):
    """A projector of convolution blocks, an average pool, more convolution blocks, and an MLP.

    Args:
        vision_width: number of channels of the vision tower's tokens.
        llm_width: number of channels of the LLM's tokens.
        grid: number of patches along one edge of the view.
        tokens: number of output tokens, a square number of at most `grid * grid`. The pool's windows overlap if the
            root of `tokens` does not divide `grid`.
        hidden: number of channels of the convolutions.
        depth: number of convolution blocks before the pool, and again after it.
        readout: number of layers of the MLP.

    Raises:
        UserError: `tokens` is not a square number from 1 to `grid * grid`.
    """

    def __init__(
        self, vision_width: int, llm_width: int, grid: int, tokens: int = HONEYBEE_TOKENS,
        hidden: int = 1024, depth: int = 3, readout: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = {"vision_width": vision_width, "llm_width": llm_width, "grid": grid, "tokens": tokens,
                      "hidden": hidden, "depth": depth, "readout": readout}  # fmt: skip
        pooled = pooled_grid(grid, tokens)
        self.grid, self.tokens = grid, tokens
        self.pos_emb = nn.Parameter(torch.empty(1, grid * grid, vision_width))
        nn.init.trunc_normal_(self.pos_emb, std=0.02)
        self.net = nn.Sequential(
            _stage(depth, vision_width, hidden), nn.AdaptiveAvgPool2d(pooled), _stage(depth, hidden, hidden)
        )
        layers: list[nn.Module] = [nn.Linear(hidden, llm_width)]
        for _ in range(readout - 1):
            layers += [nn.SiLU(), nn.Linear(llm_width, llm_width)]
        self.readout = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Project `[B, grid * grid, vision_width]` to `[B, tokens, llm_width]`, both row by row from the top left."""
        # Honeybee adds in place, which would change the vision tower's output.
        x = torch.unflatten((x + self.pos_emb).transpose(1, 2), 2, (self.grid, self.grid))
        tokens: Tensor = self.readout(self.net(x).flatten(2).transpose(1, 2))
        return tokens


class _Bottleneck(nn.Module):
    """A block of RegNet-Y (arXiv 2003.13678) from `[B, width_in, H, W]` to `[B, width, H, W]`."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(width_in, width)
        self.conv2 = _ConvNorm(width, width, depthwise=True)
        self.se = _SqueezeExcite(width, round(width_in * 0.25))  # pycls, RegNet's first code, uses the same share
        self.conv3 = _ConvNorm(width, width)
        self.downsample = nn.Identity() if width_in == width else _ConvNorm(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.se(F.silu(self.conv2(F.silu(self.conv1(x)))))
        return F.silu(self.conv3(inner) + self.downsample(x))


class _ConvNorm(nn.Module):
    """A convolution without bias (1x1, or depthwise 3x3), then LayerNorm over the channels at each position.

    The name `bn` and the eps of 1e-5 are timm's.
    """

    def __init__(self, width_in: int, width: int, depthwise: bool = False) -> None:
        super().__init__()
        kernel, groups = (3, width) if depthwise else (1, 1)
        self.conv = nn.Conv2d(width_in, width, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x).permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class _SqueezeExcite(nn.Module):
    """Multiply each channel by a factor in 0..1 that is computed from the means of all channels."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        factor: Tensor = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * factor


def _stage(depth: int, width_in: int, width: int) -> nn.Sequential:
    """Chain `depth` blocks with timm's names b1, b2, ...; the first block changes the width."""
    widths = [width_in] + [width] * (depth - 1)
    return nn.Sequential(OrderedDict((f"b{i}", _Bottleneck(before, width)) for i, before in enumerate(widths, 1)))


def pooled_grid(grid: int, tokens: int) -> int:
    """Return the number of tokens along one edge of the token grid: 12 for 144 tokens.

    Raises:
        UserError: `tokens` is not the square of a whole number from 1 to `grid`.
    """
    edge = min(max(round(math.sqrt(max(tokens, 0))), 1), grid)
    if edge**2 != tokens or not tokens:
        rule = f"must be a square number from 1 to {grid * grid}, the patches of the {grid} x {grid} grid"
        raise UserError("abstractor_tokens", tokens, rule, f"the nearest is {edge**2}")
    return edge
