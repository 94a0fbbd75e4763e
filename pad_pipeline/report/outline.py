"""A mask -> the outline that a page draws: a short SVG path, sharp at any size of the picture."""

from __future__ import annotations

import contourpy
import numpy as np
from PIL import Image

REACH = 1024
"""The unit of a path: the picture's long edge is this long."""
_MOST = 256
"""Masks are averaged down to this long edge before they are traced."""
_TOLERANCE = 0.35
"""How far an outline may be from what was traced, in pixels of the averaged mask."""


def outline(mask: np.ndarray) -> str:
    """The outline of a mask as an SVG path, to be filled by the even-odd rule; empty where the mask is.

    Args:
        mask: uint8 `[H, W]`, 0 or 1.

    Returns:
        Closed rings in whole numbers, `REACH` along the picture's long edge; each begins with an absolute `M x y` and
        goes on with steps, `l dx dy`.
    """
    height, width = mask.shape
    small = _averaged(mask)
    if not small.any():
        return ""
    ringed = np.pad(small, 1)  # so that what touches the picture's edge is closed along it
    # A thing that is thinner than a pixel of the averaged mask still has an outline.
    lines = contourpy.contour_generator(z=ringed).lines(min(127.5, float(small.max()) / 2))
    # Sample k stands for pixel k - 1, whose middle is k - 0.5.
    scale = np.array([width / small.shape[1], height / small.shape[0]]) * REACH / max(width, height)
    return "".join(_path(np.rint((_simplified(line) - 0.5) * scale).astype(int)) for line in map(np.asarray, lines))


def _averaged(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    if (longest := max(width, height)) > _MOST:
        size = max(1, round(width * _MOST / longest)), max(1, round(height * _MOST / longest))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def _simplified(line: np.ndarray) -> np.ndarray:
    """A closed line `[N, 2]` with fewer points (Ramer, Douglas, Peucker)."""
    kept = np.zeros(len(line), bool)
    # A ring's first and last point are the same; the one farthest from them cuts it in two.
    middle = int(((line - line[0]) ** 2).sum(1).argmax())
    kept[[0, middle, -1]] = True
    spans = [(0, middle), (middle, len(line) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        between, along = line[first + 1 : last] - line[first], line[last] - line[first]
        away = np.abs(between[:, 0] * along[1] - between[:, 1] * along[0]) / max(float(np.hypot(*along)), 1e-9)
        if away.max() > _TOLERANCE:
            split = first + 1 + int(away.argmax())
            kept[split] = True
            spans += [(first, split), (split, last)]
    return line[kept]


def _path(ring: np.ndarray) -> str:
    steps = np.diff(ring[:-1], axis=0)
    steps = steps[steps.any(1)]
    numbers = " ".join(f"{x} {y}" for x, y in steps.tolist())
    return f"M{ring[0, 0]} {ring[0, 1]}l{numbers}z" if numbers else ""
