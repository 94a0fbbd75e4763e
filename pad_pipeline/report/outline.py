"""A mask -> the outline that a page draws: a short SVG path, sharp at any size of the image."""

from __future__ import annotations

import contourpy
import numpy as np
from PIL import Image

REACH = 1024
"""The unit of a path: the image's long edge is this long."""
_FINE = 256
"""Larger masks are averaged before they are traced, by whole factors, to this long edge or somewhat more."""
_PASSES = 8
_TOLERANCE = 0.2
"""A point that is not farther than this from the line between its neighbors is left out, in pixels of the averaged
mask; `_PASSES` times."""


def outline(mask: np.ndarray) -> str:
    """The outline of a mask as an SVG path, to be filled by the even-odd rule; empty where the mask is.

    Args:
        mask: uint8 `[H, W]`, 0 or 1.

    Returns:
        Closed rings in whole numbers, `REACH` along the image's long edge; each begins with an absolute `M x y` and
        goes on with steps, `l dx dy`.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ""
    size = np.array(mask.shape[::-1])
    factor = max(1, int(size.max()) // _FINE)
    left, top = columns[0] // factor * factor, rows[0] // factor * factor
    part = Image.fromarray(mask[top : rows[-1] + 1, left : columns[-1] + 1] * np.uint8(255)).reduce(factor)
    ringed = np.zeros((part.height + 2, part.width + 2))  # so that what touches the image's edge is closed along it
    ringed[1:-1, 1:-1] = np.asarray(part)
    # A thing that is thinner than a pixel of the averaged mask still has an outline.
    lines = contourpy.contour_generator(z=ringed).lines(min(127.5, float(ringed.max()) / 2))
    # Sample k of `ringed` stands for pixel k - 1 of `part`, whose middle is k - 0.5.
    positions = ((_simplified(np.asarray(line)) - 0.5) * factor + (left, top) for line in lines)
    return "".join(_path(np.rint(position.clip(0, size) * REACH / size.max()).astype(int)) for position in positions)


def _simplified(line: np.ndarray) -> np.ndarray:
    """A closed line `[N, 2]`, its last point its first, with fewer points."""
    ring = line[:-1, 0] + 1j * line[:-1, 1]
    for turn in range(_PASSES):
        previous = np.concatenate((ring[-1:], ring[:-1]))
        along = np.concatenate((ring[1:], ring[:1])) - previous
        flat = np.abs(((ring - previous).conj() * along).imag) <= _TOLERANCE * np.abs(along)
        # Never two neighbors at once, for each is judged by the other: the ring closes, so the first one stays.
        flat[0] = flat[turn % 2 :: 2] = False
        if len(ring) - np.count_nonzero(flat) < 3:
            break
        ring = ring[~flat]
    return np.stack((ring.real, ring.imag), 1)


def _path(ring: np.ndarray) -> str:
    steps = np.diff(ring, axis=0)
    steps = steps[steps.any(1)]
    numbers = " ".join(map(str, steps.ravel().tolist()))
    return f"M{ring[0, 0]} {ring[0, 1]}l{numbers}z" if numbers else ""
