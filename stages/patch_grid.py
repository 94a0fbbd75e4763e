"""Read a patch grid, which says how much of each patch belongs to a region, and make a mask that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pad_pipeline.geometry import View

_MOST_BYTES = 1 << 20
"""The greatest size of a grid's file; FiVL's have 6 KB."""


def read_grid(path: Path, edge: int) -> np.ndarray:
    """Read a grid that `torch.save` wrote, float64 `[edge, edge]`, 0..255. No code in the file runs.

    Raises:
        ValueError: the file is missing, too large or damaged, holds anything but a tensor, or the tensor has another
            shape or other values.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"its grid {path.name} has more than {_MOST_BYTES} bytes")
        found = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise ValueError(f"its grid {path.name} can't be read ({error.strerror})") from error
    except ValueError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        raise ValueError(f"its grid {path.name} is no tensor that torch.save wrote ({type(error).__name__})") from error
    if not isinstance(found, torch.Tensor) or found.shape != (edge, edge):
        shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"its grid {path.name} is {shape}, and should be [{edge}, {edge}]")
    grid: np.ndarray = found.double().numpy()
    if not (np.isfinite(grid).all() and (grid >= 0).all() and (grid <= 255).all()):
        raise ValueError(f"its grid {path.name} has values outside 0..255")
    return grid


def mask_of(grid: np.ndarray, view: View, width: int, height: int) -> np.ndarray:
    """Return a mask of an image whose coverage of each patch of the view is that of the grid, bool `[height, width]`.

    Which pixels of a patch belong to the region is not known. Those are taken where the grid, interpolated between the
    centers of patches, is highest; their number is the patch's share of its pixels, rounded.

    Args:
        grid: how much of each patch belongs to the region, `[view.grid, view.grid]`, 0..255.
        view: the view of the grid, with fit `pad`.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    square = max(width, height)
    left, top = (square - width) // 2, (square - height) // 2
    # Only for the pixels of the image: the square of a long and narrow one could be far larger.
    heights = _between(top, height, square, len(grid)) @ grid @ _between(left, width, square, len(grid)).T
    # The patch of each pixel, by the pixel's center.
    cells = ((np.arange(square) + 0.5) * view.size / square / view.patch).astype(int)
    rows, columns = cells[top : top + height], cells[left : left + width]
    mask = np.zeros((height, width), bool)
    for row, column in np.argwhere(grid > 0):
        ys, xs = np.flatnonzero(rows == row), np.flatnonzero(columns == column)
        if not len(ys) or not len(xs):
            continue  # the patch shows padding alone
        whole = (view.patch * square / view.size) ** 2  # pixels of a patch, also where a part of them is padding
        wanted = min(round(whole * grid[row, column] / 255) or 1, len(ys) * len(xs))
        part = heights[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        chosen = np.zeros(part.size, bool)
        chosen[np.argsort(-part, axis=None, kind="stable")[:wanted]] = True
        mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] = chosen.reshape(part.shape)
    return mask


def _between(first: int, count: int, square: int, edge: int) -> np.ndarray:
    """Return the share of each of `edge` patches in the linear interpolation at `count` pixels from `first` on, of
    `square` pixels in all: float64 `[count, edge]`."""
    at = ((np.arange(first, first + count) + 0.5) * edge / square - 0.5).clip(0, edge - 1)
    before = at.astype(int)
    shares = np.zeros((count, edge))
    pixel = np.arange(count)
    np.add.at(shares, (pixel, before), 1 - (at - before))
    np.add.at(shares, (pixel, np.minimum(before + 1, edge - 1)), at - before)
    return shares
