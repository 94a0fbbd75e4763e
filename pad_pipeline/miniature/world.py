"""Seeded scenes: things with parts on varied grounds, drawn back to front, with the exact mask of all that is visible.

Every shape is drawn twice: in colour into the picture, and in its own number into a map of owners. What is painted
over loses its pixels in both, so masks are exact and know of occlusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (200, 40, 40),
    "blue": (50, 80, 200),
    "green": (50, 150, 60),
    "yellow": (235, 205, 60),
    "white": (240, 240, 235),
    "orange": (235, 140, 40),
    "purple": (130, 60, 160),
}
GROUNDS: dict[str, tuple[str, Colour, str, Colour]] = {
    "meadow": ("sky", (150, 200, 240), "grass", (95, 165, 75)),
    "beach": ("sky", (170, 215, 245), "sand", (225, 205, 150)),
    "coast": ("sky", (140, 190, 235), "sea", (40, 100, 160)),
    "street": ("sky", (185, 195, 205), "road", (95, 95, 100)),
    "room": ("wall", (215, 205, 190), "floor", (150, 110, 75)),
}
"""Name -> the upper stuff and its colour, the lower stuff and its colour."""


class Region(NamedTuple):
    """One labelled thing, part or stuff that can be seen."""

    label: str
    mask: np.ndarray
    """bool `[H, W]`: its visible pixels. A thing's parts belong to it too."""
    kind: str
    """`thing`, `part` or `stuff`."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """`xyxy` of the visible pixels, exclusive at the right and the bottom."""
        ys, xs = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


@dataclass
class Scene:
    """A drawn picture and all that is true of it."""

    image: Image.Image
    regions: list[Region]
    caption: str


@dataclass
class Brush:
    """Draws one thing, in its own coordinates (x and y from -1 to 1, y down), into picture and owner map at once."""

    colour: ImageDraw.ImageDraw
    owner: ImageDraw.ImageDraw
    centre: Point
    scale: float
    """Half the thing's height in pixels."""
    angle: float
    main: Colour
    owners: list[tuple[str, int]]
    """Grows by one entry, (part label, index of the thing), for each shape; an owner's number is its place + 1."""
    thing: int

    def polygon(self, part: str, points: list[Point], colour: Colour | None = None) -> None:
        """A filled polygon that belongs to `part` ("" for the thing's body)."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        placed = [
            (self.centre[0] + self.scale * (x * cos - y * sin), self.centre[1] + self.scale * (x * sin + y * cos))
            for x, y in points
        ]
        self.owners.append((part, self.thing))
        self.colour.polygon(placed, fill=colour or self.main)
        self.owner.polygon(placed, fill=len(self.owners))

    def box(self, part: str, x0: float, y0: float, x1: float, y1: float, colour: Colour | None = None) -> None:
        """A filled rectangle by two corners."""
        self.polygon(part, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def disc(self, part: str, x: float, y: float, rx: float, ry: float, colour: Colour | None = None) -> None:
        """A filled ellipse by centre and radii."""
        turns = [2 * math.pi * step / 28 for step in range(28)]
        self.polygon(part, [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns], colour)


def _house(b: Brush) -> None:
    b.box("", -0.8, -0.2, 0.8, 1.0)
    b.polygon("roof", [(-1.0, -0.2), (0.0, -1.0), (1.0, -0.2)], (120, 60, 45))
    b.box("door", -0.15, 0.4, 0.2, 1.0, (80, 55, 40))
    b.box("window", -0.6, 0.1, -0.3, 0.4, (170, 210, 230))
    b.box("window", 0.35, 0.1, 0.65, 0.4, (170, 210, 230))


def _car(b: Brush) -> None:
    b.box("", -1.2, -0.05, 1.2, 0.55)
    b.polygon("", [(-0.7, -0.05), (-0.4, -0.6), (0.5, -0.6), (0.8, -0.05)])
    b.polygon("window", [(-0.5, -0.08), (-0.3, -0.48), (0.0, -0.48), (0.0, -0.08)], (185, 220, 235))
    b.polygon("window", [(0.08, -0.08), (0.08, -0.48), (0.42, -0.48), (0.6, -0.08)], (185, 220, 235))
    b.disc("wheel", -0.65, 0.6, 0.3, 0.3, (35, 35, 35))
    b.disc("wheel", 0.65, 0.6, 0.3, 0.3, (35, 35, 35))


def _tree(b: Brush) -> None:
    b.box("trunk", -0.14, 0.1, 0.14, 1.0, (100, 70, 45))
    for x, y in ((0.0, -0.5), (-0.35, -0.15), (0.35, -0.15)):
        b.disc("leaves", x, y, 0.48, 0.42)


def _boat(b: Brush) -> None:
    b.polygon("", [(-1.0, 0.45), (1.0, 0.45), (0.7, 0.9), (-0.7, 0.9)])
    b.box("mast", -0.05, -0.95, 0.05, 0.45, (90, 65, 45))
    b.polygon("sail", [(0.1, -0.9), (0.85, 0.3), (0.1, 0.3)], (245, 245, 240))


def _flower(b: Brush) -> None:
    b.box("stem", -0.06, 0.0, 0.06, 1.0, (50, 130, 60))
    for step in range(6):
        turn = step * math.pi / 3
        b.disc("petal", 0.36 * math.cos(turn), -0.45 + 0.36 * math.sin(turn), 0.24, 0.24)
    b.disc("", 0.0, -0.45, 0.2, 0.2, (240, 200, 60))


def _ball(b: Brush) -> None:
    b.disc("", 0.0, 0.0, 0.9, 0.9)
    b.box("stripe", -0.86, -0.18, 0.86, 0.18, (250, 250, 250))


def _fish(b: Brush) -> None:
    b.disc("", 0.0, 0.0, 0.8, 0.45)
    b.polygon("tail", [(0.65, 0.0), (1.1, -0.4), (1.1, 0.4)])
    b.disc("eye", -0.45, -0.1, 0.11, 0.11, (20, 20, 20))


def _cup(b: Brush) -> None:
    b.disc("handle", 0.7, 0.1, 0.38, 0.4)
    b.polygon("", [(-0.7, -0.7), (0.7, -0.7), (0.5, 0.8), (-0.5, 0.8)])


THINGS: dict[str, Callable[[Brush], None]] = {
    "house": _house,
    "car": _car,
    "tree": _tree,
    "boat": _boat,
    "flower": _flower,
    "ball": _ball,
    "fish": _fish,
    "cup": _cup,
}
PARTS = (
    "roof",
    "door",
    "window",
    "wheel",
    "trunk",
    "leaves",
    "mast",
    "sail",
    "stem",
    "petal",
    "stripe",
    "tail",
    "eye",
    "handle",
)
STUFF = tuple(dict.fromkeys(stuff for upper, _, lower, _ in GROUNDS.values() for stuff in (upper, lower)))
LABELS: tuple[str, ...] = (*THINGS, *PARTS, *STUFF)
"""Every label that a scene can hold."""


def draw_scene(seed: int, index: int) -> Scene:
    """Scene `index` of the world `seed`; each pair always gives the same scene."""
    rng = np.random.default_rng((seed, index))
    width, height = (int(edge) for edge in rng.integers(120, 260, 2))
    name = str(rng.choice(list(GROUNDS)))
    upper, upper_colour, lower, lower_colour = GROUNDS[name]
    horizon = int(height * rng.uniform(0.35, 0.6))

    picture = Image.new("RGB", (width, height), upper_colour)
    owner_map = Image.new("I", (width, height), 0)
    colour, owner = ImageDraw.Draw(picture), ImageDraw.Draw(owner_map)
    owners = [(upper, -1), (lower, -1)]  # stuff belongs to no thing
    colour.rectangle((0, horizon, width, height), fill=lower_colour)
    owner.rectangle((0, 0, width, height), fill=1)
    owner.rectangle((0, horizon, width, height), fill=2)

    # Far things first: what stands lower in the picture is nearer, larger, and painted over the rest.
    feet = sorted(float(foot) for foot in rng.uniform(horizon + 0.1 * (height - horizon), height, rng.integers(1, 5)))
    things: list[tuple[str, str]] = []
    for foot in feet:
        kind, shade = str(rng.choice(list(THINGS))), str(rng.choice(list(COLOURS)))
        scale = min(width, height) * rng.uniform(0.14, 0.3) * (0.6 + 0.6 * foot / height)
        centre = (float(rng.uniform(0.12, 0.88)) * width, foot - scale * 0.9)
        brush = Brush(
            colour, owner, centre, scale, float(rng.uniform(-0.12, 0.12)), COLOURS[shade], owners, len(things)
        )
        THINGS[kind](brush)
        things.append((kind, shade))

    noise = rng.normal(0, rng.uniform(2, 8), (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    regions = _regions(np.asarray(owner_map), owners, things)
    visible = {thing for region, thing in regions if region.kind == "thing"}
    caption = _caption([things[thing] for thing in sorted(visible)], upper, lower)
    return Scene(Image.fromarray(pixels), [region for region, _ in regions], caption)


def _regions(
    owner: np.ndarray, owners: list[tuple[str, int]], things: list[tuple[str, str]]
) -> list[tuple[Region, int]]:
    """Things, then parts (those of one name of one thing together), then stuff; only what can be seen."""
    wanted: dict[tuple[str, str, int], list[int]] = {}
    for thing, (kind, _) in enumerate(things):
        wanted["thing", kind, thing] = [n for n, (_, of) in enumerate(owners, 1) if of == thing]
    for number, (part, thing) in enumerate(owners, 1):
        if thing >= 0 and part:
            wanted.setdefault(("part", part, thing), []).append(number)
    for number, (stuff, thing) in enumerate(owners, 1):
        if thing < 0:
            wanted["stuff", stuff, -1] = [number]
    found = []
    for (kind, label, thing), numbers in wanted.items():
        mask = np.isin(owner, numbers)
        if mask.any():
            found.append((Region(label, mask, kind), thing))
    return found


def _caption(things: list[tuple[str, str]], upper: str, lower: str) -> str:
    named = [f"a{'n' if shade[0] in 'aeiou' else ''} {shade} {kind}" for kind, shade in things]
    if not named:
        return f"the {lower} under the {upper}."
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    place = f"in front of the {upper}" if lower == "floor" else f"under the {upper}"
    return f"{listed} on the {lower} {place}."
