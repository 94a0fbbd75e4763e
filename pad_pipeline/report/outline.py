"""Traces the outline of a mask as a short SVG path, which is sharp at any size of the image."""

from __future__ import annotations

import contourpy
import numpy as np
from PIL import Image

REACH = 1024
"""The length of the image's long edge in units of a path."""
_FINE = 256
"""Larger masks are shrunk by a whole factor, to a long edge of this many pixels or somewhat more."""
_PASSES = 8
"""The number of passes that leave out points."""
_TOLERANCE = 0.2
"""A point is left out up to this distance from the line between its neighbors, in pixels of the shrunk mask."""


def outline(mask: np.ndarray) -> str:
    """Return the outline of a mask, uint8 0 or 1 `[H, W]`, as an SVG path for the even-odd fill rule.

    The path has closed rings in whole numbers: an absolute `M x y`, then relative steps `l dx dy`. The long edge of the
    image is `REACH` units. The path of an empty mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ""
    size = np.array(mask.shape[::-1])
    factor = max(1, int(size.max()) // _FINE)
    left, top = columns[0] // factor * factor, rows[0] // factor * factor
    part = Image.fromarray(mask[top : rows[-1] + 1, left : columns[-1] + 1] * np.uint8(255)).reduce(factor)
    # A border of zeros closes the outline of a mask along the image's edge.
    bordered = np.zeros((part.height + 2, part.width + 2))
    bordered[1:-1, 1:-1] = np.asarray(part)
    # The lower level gives an outline to masks thinner than a pixel of the shrunk mask.
    lines = contourpy.contour_generator(z=bordered).lines(min(127.5, float(bordered.max()) / 2))
    # Sample k of `bordered` is pixel k - 1 of `part`, whose center is at k - 0.5.
    positions = ((_simplified(np.asarray(line)) - 0.5) * factor + (left, top) for line in lines)
    return "".join(_path(np.rint(position.clip(0, size) * REACH / size.max()).astype(int)) for position in positions)


def _simplified(line: np.ndarray) -> np.ndarray:
    """Leave out points of a closed line, float64 `[N, 2]`, whose last point is also the first. The result, float64
    `[n, 2]`, does not repeat that point."""
    ring = line[:-1, 0] + 1j * line[:-1, 1]
    for turn in range(_PASSES):
        previous = np.concatenate((ring[-1:], ring[:-1]))
        along = np.concatenate((ring[1:], ring[:1])) - previous
        flat = np.abs(((ring - previous).conj() * along).imag) <= _TOLERANCE * np.abs(along)
        # Never leave out two neighbors in one pass, because each was compared with the other. The first point always
        # stays, because it is a neighbor of the last.
        flat[0] = flat[turn % 2 :: 2] = False
        if len(ring) - np.count_nonzero(flat) < 3:
            break
        ring = ring[~flat]
    return np.stack((ring.real, ring.imag), 1)


def _path(ring: np.ndarray) -> str:
    """Return the SVG path of a ring of points, int64 `[N, 2]`; empty for a single point."""
    steps = np.diff(ring, axis=0)
    steps = steps[steps.any(1)]
    numbers = " ".join(map(str, steps.ravel().tolist()))
    return f"M{ring[0, 0]} {ring[0, 1]}l{numbers}z" if numbers else ""
