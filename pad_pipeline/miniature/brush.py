"""Draws one thing, in its own coordinates, into an image and a map of owners at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

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
    """Whom a drawn shape belongs to."""

    part: str
    """Label of the part; "" for the thing's body."""
    thing: int
    """Number of the thing in the scene; -1 for stuff."""
    instance: int
    """Shapes of one part of one thing with the same number are one region (the petals of a flower)."""


@dataclass
class Brush:
    """A thing's coordinates run from -1 to 1, y down; its feet stand at y = 1."""

    color: ImageDraw.ImageDraw
    owner: ImageDraw.ImageDraw
    owners: list[Owner]
    """Grows by one for each shape; a shape's number in the owner map is its place here + 1."""
    thing: int
    rng: np.random.Generator
    center: Point
    scale: float
    """Half the thing's height in pixels."""
    angle: float
    """Radians, clockwise."""
    mirror: bool
    main: Color
    outline: bool
    """A dark line around every shape."""
    wobble: float
    """How far corners stray, as by an unsteady hand."""

    def pick(self, count: int) -> int:
        """One of `count` ways to draw this thing."""
        return int(self.rng.integers(count))

    def polygon(self, part: str, points: list[Point], color: Color | None = None, join: bool = False) -> None:
        """A filled polygon that belongs to `part` ("" for the body); `join` makes it one region with the last one."""
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        if self.wobble:
            points = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(points, self._strayed(len(points)), strict=True)]
        if self.mirror:
            points = [(-x, y) for x, y in points]
        placed = [(self.center[0] + x * cos - y * sin, self.center[1] + x * sin + y * cos) for x, y in points]
        instance = self.owners[-1].instance if join else len(self.owners)
        self.owners.append(Owner(part, self.thing, instance))
        fill = color or self.main
        # The line is drawn into both, because it may reach a pixel beyond the area.
        self.color.polygon(placed, fill=fill, outline=DARK if self.outline else fill)
        self.owner.polygon(placed, fill=len(self.owners), outline=len(self.owners))

    def _strayed(self, count: int) -> list[list[float]]:
        return self.rng.normal(0, self.wobble, (count, 2)).tolist()

    def box(
        self, part: str, x0: float, y0: float, x1: float, y1: float, color: Color | None = None, join: bool = False
    ) -> None:
        """A filled rectangle by two corners."""
        self.polygon(part, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, join)

    def disc(
        self, part: str, x: float, y: float, rx: float, ry: float, color: Color | None = None, join: bool = False
    ) -> None:
        """A filled ellipse by center and radii."""
        turns = [2 * math.pi * step / 20 for step in range(20)]
        self.polygon(part, [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns], color, join)

    def limb(self, part: str, start: Point, end: Point, width: float, color: Color | None = None) -> None:
        """A straight bar between two points."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(part, [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], color)

    def star(self, part: str, x: float, y: float, outer: float, inner: float, points: int) -> None:
        """A star."""
        turns = [(math.pi * step / points - math.pi / 2, inner if step % 2 else outer) for step in range(2 * points)]
        self.polygon(part, [(x + r * math.cos(turn), y + r * math.sin(turn)) for turn, r in turns])
