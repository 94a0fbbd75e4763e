"""Draw random scenes, things with parts on different grounds, with the exact mask of each visible region.

Every shape is drawn twice: in color into the image, and as a number into the map of owners. In both, a later shape
covers earlier ones. So masks are exact, and have only visible pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageDraw import ImageDraw as Canvas

from pad_pipeline.miniature.brush import Brush, Color, Owner
from pad_pipeline.miniature.kinds import PARTS, THINGS, Artist
from pad_pipeline.records import Box

Place = tuple[str, float, float, float]
"""A thing to draw: kind, center x, center y, and half the height, in pixels."""

COLORS: dict[str, Color] = {
    "red": (205, 40, 40), "blue": (45, 80, 205), "green": (45, 145, 60), "yellow": (238, 208, 55),
    "white": (242, 242, 238), "orange": (238, 138, 35), "purple": (130, 60, 165), "pink": (240, 150, 190),
    "brown": (125, 80, 45), "gray": (130, 132, 138), "black": (42, 40, 45),
}  # fmt: skip
SIZES = ("small", "large")
TEXTURES = ("striped", "dotted", "checked")
STUFF: dict[str, tuple[Color, str]] = {
    "sky": ((150, 200, 242), "clear"),
    "night": ((28, 32, 68), "stars"),
    "wall": ((216, 206, 190), "bricks"),
    "grass": ((98, 168, 78), "blades"),
    "sand": ((226, 206, 150), "grains"),
    "sea": ((42, 105, 165), "waves"),
    "road": ((98, 98, 104), "grains"),
    "snow": ((232, 238, 246), "grains"),
    "floor": ((155, 114, 78), "planks"),
    "hill": ((120, 140, 95), "grains"),
}
"""The color and the texture of each kind of stuff."""
BACKDROPS: dict[str, tuple[str, ...]] = {
    "grass": ("sky", "night"),
    "sand": ("sky", "night"),
    "sea": ("sky", "night"),
    "road": ("sky", "night", "wall"),
    "snow": ("sky", "night"),
    "floor": ("wall",),
}
"""The kinds of stuff that can be above the horizon, for each kind of ground."""
LABELS: tuple[str, ...] = (*THINGS, *PARTS, *STUFF)
"""All labels that regions can have."""

MIN_PIXELS = 20
"""Things, parts and stuff with fewer visible pixels are not regions, because nobody could recognize them."""
MIN_VISIBLE = 0.6
"""Things are placed so that any other thing leaves about this share of each visible, or more."""


class TrueRegion(NamedTuple):
    """A visible thing, part or stuff of a scene."""

    label: str
    mask: np.ndarray
    """The visible pixels, bool `[H, W]`. A thing includes its parts."""
    kind: str
    """`thing`, `part` or `stuff`."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box of the visible pixels, xyxy in pixels, without the right and the lower edge."""
        ys, xs = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


class Thing(NamedTuple):
    """The attributes of a thing for captions and questions."""

    kind: str
    color: str
    """The name of the color; "" for kinds with only one color."""
    size: str
    """`small`, `large`, or "" for neither."""
    texture: str
    """`striped`, `dotted`, `checked`, or "" for plain."""
    air: bool
    region: int
    """The index of the thing in `Scene.regions`."""


DrawnThing = tuple[Brush, Thing]
"""The brush that drew a thing, and the thing's attributes."""


@dataclass
class Scene:
    """A drawn image, with its true regions and things."""

    image: Image.Image
    regions: list[TrueRegion]
    """The visible regions: things, then parts, then stuff."""
    things: list[Thing]
    """The visible things, from the farthest to the nearest."""
    backdrop: str
    """The label of the stuff above the horizon."""
    ground: str
    """The label of the ground."""


EDGES = (128, 224)
"""The smallest and the largest edge of an image, in pixels."""


def draw_scene(seed: int, index: int, size: tuple[int, int] | None = None, most: int = 5) -> Scene:
    """Draw scene `index` of the world `seed`; the same arguments always give the same scene.

    `size` is width and height in pixels; by default, both are random within `EDGES`. `most` is the largest number of
    things in the scene, at least 1.
    """
    rng = np.random.default_rng((seed, index))
    drawn = rng.integers(EDGES[0], EDGES[1] + 1, 2)  # also for a given size, which then changes nothing else
    width, height = size or (int(drawn[0]), int(drawn[1]))
    ground = str(rng.choice(list(BACKDROPS)))
    backdrop = str(rng.choice(BACKDROPS[ground]))
    background, owner = _background(rng, width, height, backdrop, ground)
    canvas_image, owner_map = Image.fromarray(background), Image.fromarray(owner)
    canvas = ImageDraw.Draw(canvas_image), ImageDraw.Draw(owner_map)
    owners = [Owner(backdrop, -1, 0), Owner(ground, -1, 1), Owner("hill", -1, 2)]  # stuff has no thing

    # Draw the things, from the farthest to the nearest.
    made: list[DrawnThing] = []
    for place in _places(rng, width, height, int(rng.integers(1, most + 1))):
        made.append(_draw_thing(rng, place, min(width, height), canvas, owners, len(made)))
    # Add textures, light and noise. None of these changes the map of owners.
    pixels = np.asarray(canvas_image).astype(np.float32)
    owner = np.asarray(owner_map)
    _add_textures(rng, pixels, owner, owners, made)
    pixels *= rng.uniform(0.72, 0.88) if backdrop == "night" else rng.uniform(0.9, 1.08)
    grey = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(2, 8)
    pixels += grey + rng.standard_normal((height, width, 3), np.float32) * 2
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    regions, places = _regions(owner, owners, [thing.kind for _, thing in made])
    things = [thing._replace(region=places[number]) for number, (_, thing) in enumerate(made) if number in places]
    return Scene(image, regions, things, backdrop, ground)


def _background(
    rng: np.random.Generator, width: int, height: int, backdrop: str, ground: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image without things, uint8 `[H, W, 3]`, and its map of owners, int32 `[H, W]`."""
    horizon = int(height * rng.uniform(0.35, 0.6))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    owner = np.where(y < horizon, 1, 2).astype(np.int32)
    if backdrop != "wall" and rng.random() < 0.4:
        top = horizon - height * rng.uniform(0.1, 0.22) * np.cos((x / width - rng.uniform(0.2, 0.8)) * 2.2)
        owner[(y >= top) & (y < horizon)] = 3
    pixels = np.zeros((height, width, 3), np.float32)
    for number, stuff in enumerate((backdrop, ground, "hill"), 1):
        color, texture = STUFF[stuff]
        shade = np.array(color, np.float32) + rng.normal(0, 6, 3)
        here = owner == number
        pixels[here] = shade + _ground_texture(rng, texture, x, y)[here, None]
    # Add specks and dashes, which are not regions.
    for _ in range(rng.integers(0, 9)):
        cx, cy, r = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(1, 4))
        pixels[max(cy - r, 0) : cy + 1, max(cx - 2 * r, 0) : cx + r] += rng.uniform(-45, 45)
    return np.clip(pixels, 0, 255).astype(np.uint8), owner


def _ground_texture(rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the gray levels that a texture of `STUFF` adds at the pixels `x` and `y`, float32 `[H, W]`."""
    if texture == "clear":
        return y * float(rng.uniform(0, 0.15))
    if texture == "stars":
        return np.where(rng.random(x.shape, np.float32) > 0.996, 150, 0).astype(np.float32)
    if texture == "bricks":
        edge = float(rng.uniform(9, 15))
        row = np.floor(y / edge)
        return np.where((y % edge < 1.5) | ((x + row % 2 * edge) % (2 * edge) < 1.5), -22, 0).astype(np.float32)
    if texture == "planks":
        return np.where(y % float(rng.uniform(8, 14)) < 1.5, -30, 0).astype(np.float32)
    if texture == "waves":
        length = float(rng.uniform(8, 14))
        return 14 * np.sin(2 * math.pi * y / length + 1.5 * np.sin(2 * math.pi * x / (3 * length)))
    if texture == "blades":
        return np.repeat(rng.normal(0, 13, (x.shape[0] // 3 + 1, x.shape[1])), 3, 0)[: x.shape[0]].astype(np.float32)
    return rng.standard_normal(x.shape, np.float32) * 9


def _places(rng: np.random.Generator, width: int, height: int, count: int) -> list[Place]:
    """Place up to `count` random things so that none hides too much of another; return the farthest first."""
    placed: list[tuple[float, Place]] = []  # the y of a thing's feet, and its place
    boxes: list[Box] = []
    for _ in range(count):
        kind = str(rng.choice(list(THINGS)))
        air = THINGS[kind].air
        for _ in range(8):  # attempts; if all fail, the thing is left out
            foot = float(rng.uniform(0.62, 1.0)) * height
            scale = min(width, height) * float(rng.uniform(0.13, 0.27))
            if air:
                y, scale = float(rng.uniform(0.12, 0.5)) * height, scale * 0.85
                y = max(y, scale * 0.9)
                foot = 0.0  # things in the air are behind those on the ground
            else:
                scale *= 0.35 + 0.7 * foot / height
                y = foot - scale * 0.95
            wide = scale * THINGS[kind].wide
            x = float(rng.uniform(min(wide * 0.7, width / 2), max(width - wide * 0.7, width / 2)))
            box = (x - wide, y - scale, x + wide, y + scale)
            if all(_hidden(box, other) < 1 - MIN_VISIBLE for other in boxes):
                boxes.append(box)
                placed.append((foot, (kind, x, y, scale)))
                break
    return [place for _, place in sorted(placed, key=lambda entry: entry[0])]


def _hidden(a: Box, b: Box) -> float:
    """Return the share (0..1) of the smaller of two boxes that the other box covers."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(across, 0) * max(down, 0) / smaller


def _draw_thing(
    rng: np.random.Generator, place: Place, edge: int, canvas: tuple[Canvas, Canvas], owners: list[Owner], number: int
) -> DrawnThing:
    """Draw a thing; return its brush and its attributes, with -1 as the index of its region."""
    kind, x, y, scale = place
    known = THINGS[kind]
    shade = str(rng.choice(known.shades or list(COLORS)))
    red, green, blue = (int(np.clip(level + rng.normal(0, 8), 0, 255)) for level in COLORS[shade])
    style = rng.integers(4)  # flat, outlined, shaded (see _add_textures), sketched
    brush = Artist(
        *canvas, owners, number, rng, (x, y), scale, float(rng.uniform(-known.turn, known.turn)), bool(rng.integers(2)),
        (red, green, blue), outline=bool(style in (1, 3)), wobble=0.02 if style == 3 else 0.0,
    )  # fmt: skip
    known.draw(brush)
    size = "small" if scale / edge < 0.14 else "large" if scale / edge > 0.21 else ""
    texture = str(rng.choice(TEXTURES)) if rng.random() < 0.35 and len(known.shades) != 1 else ""
    return brush, Thing(kind, shade if len(known.shades) != 1 else "", size, texture, known.air, -1)


def _add_textures(
    rng: np.random.Generator, pixels: np.ndarray, owner: np.ndarray, owners: list[Owner], made: list[DrawnThing]
) -> None:
    """Add textures and shading to the things in the image `pixels`, float32 `[H, W, 3]`."""
    for number, (brush, thing) in enumerate(made):
        shaded = rng.random() < 0.3
        if not (shaded or thing.texture):
            continue
        # The numbers of a thing's shapes have no gaps, because the shapes were drawn one after another.
        shapes = [shape for shape, shape_owner in enumerate(owners, 1) if shape_owner.thing == number]
        # The texture covers the body, and those parts that can hide most of the body.
        body = [shape for shape in shapes if owners[shape - 1].part in ("", "petal", "cap", "leaves", "wing")]
        reach = 1.6 * brush.scale
        x0, x1 = max(int(brush.center[0] - reach), 0), max(int(brush.center[0] + reach) + 1, 0)
        y0, y1 = max(int(brush.center[1] - reach), 0), max(int(brush.center[1] + reach) + 1, 0)
        window = owner[y0:y1, x0:x1]
        y, x = np.mgrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]].astype(np.float32)
        if thing.texture:
            marks = np.isin(window, body) & _marks(thing.texture, x, y, max(brush.scale * 0.34, 5.0))
            pixels[y0:y1, x0:x1][marks] -= 75 if sum(brush.main) > 380 else -75  # dark things get light marks
        if shaded:
            whole = (window >= shapes[0]) & (window <= shapes[-1])
            pixels[y0:y1, x0:x1] += np.where(whole, (brush.center[0] - x) / brush.scale * 22, 0)[..., None]


def _marks(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Return whether the pixels `x` and `y` belong to the marks of a thing's texture, bool `[H, W]`."""
    u, v = x % period, y % period
    marks: np.ndarray = (u - period / 2) ** 2 + (v - period / 2) ** 2 < (period * 0.27) ** 2  # dotted
    if texture == "striped":
        marks = (x + y) % period < period * 0.42
    elif texture == "checked":
        marks = (u < period / 2) ^ (v < period / 2)
    return marks


def _regions(owner: np.ndarray, owners: list[Owner], kinds: list[str]) -> tuple[list[TrueRegion], dict[int, int]]:
    """Return the visible regions of a scene, and for each visible thing the index of its region."""
    regions: list[TrueRegion] = []
    places: dict[int, int] = {}
    for thing, kind in enumerate(kinds):
        mask = np.isin(owner, [shape for shape, one in enumerate(owners, 1) if one.thing == thing])
        if np.count_nonzero(mask) >= MIN_PIXELS:
            places[thing] = len(regions)
            regions.append(TrueRegion(kind, mask, "thing"))
    # Shapes with the same owner are one region: a part, or after all parts stuff.
    for region in sorted({one: None for one in owners if one.part}, key=lambda one: one.thing < 0):
        mask = np.isin(owner, [shape for shape, one in enumerate(owners, 1) if one == region])
        if np.count_nonzero(mask) >= MIN_PIXELS:
            regions.append(TrueRegion(region.part, mask, "stuff" if region.thing < 0 else "part"))
    return regions, places
