"""Draw shapes twice: in color into the image, and as a number into the map of owners, the shape of each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from pad_pipeline.records import Box

Point = tuple[float, float]
Color = tuple[int, int, int]

DARK: Color = (35, 32, 30)
WOOD: Color = (105, 72, 45)
GLASS: Color = (175, 215, 232)
METAL: Color = (150, 155, 162)
LEAF: Color = (60, 135, 62)
CREAM: Color = (243, 238, 222)
GOLD: Color = (240, 200, 60)


class Owner(NamedTuple):
    """The part of a scene to which a drawn shape belongs."""

    part: str
    """The label of the part of a thing, or of the stuff; "" for the body of a thing."""
    thing: int
    """The number of the thing in the scene; -1 for stuff."""
    instance: int
    """Distinguishes equal parts. Shapes with the same owner are one region (such as the petals of a flower)."""


@dataclass
class Brush:
    """Draws one thing in its own coordinates: from -1 to 1, with y downward and the feet at y = 1."""

    color: ImageDraw.ImageDraw
    owner: ImageDraw.ImageDraw
    owners: list[Owner]
    """The owner of each shape drawn so far. The shape's number in the map of owners is its index here + 1."""
    thing: int
    rng: np.random.Generator
    center: Point
    scale: float
    """Half the height of the thing, in pixels."""
    angle: float
    """The rotation in radians, clockwise."""
    mirror: bool
    main: Color
    outline: bool
    """Whether every shape has a dark outline."""
    wobble: float
    """The standard deviation of the random shift of each corner, in the thing's coordinates."""

    def pick(self, count: int) -> int:
        """Return a random number from 0 to `count - 1`, to choose one of `count` ways to draw the thing."""
        return int(self.rng.integers(count))

    def polygon(self, part: str, points: list[Point], color: Color | None = None, join: bool = False) -> None:
        """Draw a filled polygon of a part ("" for the body). With `join`, it belongs to the last shape's region."""
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        if self.wobble:
            offsets = self.rng.normal(0, self.wobble, (len(points), 2)).tolist()
            points = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(points, offsets, strict=True)]
        if self.mirror:
            points = [(-x, y) for x, y in points]
        placed = [(self.center[0] + x * cos - y * sin, self.center[1] + x * sin + y * cos) for x, y in points]
        instance = self.owners[-1].instance if join else len(self.owners)
        self.owners.append(Owner(part, self.thing, instance))
        fill = color or self.main
        # The map of owners gets the outline as well, because it may reach a pixel beyond the area.
        self.color.polygon(placed, fill=fill, outline=DARK if self.outline else fill)
        self.owner.polygon(placed, fill=len(self.owners), outline=len(self.owners))

    def box(self, part: str, boxes: Sequence[Box], color: Color | None = None, join: bool = False) -> None:
        """Draw filled rectangles, each from two opposite corners."""
        for x0, y0, x1, y1 in boxes:
            self.polygon(part, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, join)

    def disc(
        self, part: str, at: Sequence[Point], rx: float, ry: float, color: Color | None = None, join: bool = False
    ) -> None:
        """Draw filled ellipses with the centers `at` and the radii `rx` and `ry`."""
        turns = [2 * math.pi * step / 20 for step in range(20)]
        for x, y in at:
            self.polygon(part, [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns], color, join)

    def bar(self, part: str, start: Point, end: Point, width: float, color: Color | None = None) -> None:
        """Draw a straight bar between two points."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(part, [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], color)
