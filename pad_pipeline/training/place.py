"""The place of a vision token: sines and cosines of its row and its column, which are added behind the projector."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def place_waves(grid: int, width: int) -> Tensor:
    """Return a vector for each place of a grid, float32 `[grid * grid, width]`, row by row from the top left.

    The first half of a vector has sines and cosines of the row, the second half those of the column, as in MAE (arXiv
    2111.06377). The wavelengths go in equal ratios from 4 tokens to 4 edges of the grid, so that neighbors differ, and
    no two places are alike. The mean square of the values is 1. `width` is a multiple of 4, at least 8.
    """
    count = width // 4
    speeds = math.pi / 2 * float(grid) ** -(torch.arange(count) / (count - 1))
    angles = torch.arange(grid)[:, None] * speeds
    waves = math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([waves.repeat_interleave(grid, 0), waves.repeat(grid, 1)], 1)


def mean_size(table: Tensor) -> Tensor:
    """Return the root of the mean square of all values of a table of word embeddings, a scalar of float32."""
    size: Tensor = torch.linalg.vector_norm(table.detach(), dtype=torch.float32) / math.sqrt(table.numel())
    return size
