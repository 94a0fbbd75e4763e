"""Seeded scenes: things with parts on varied grounds, drawn back to front, with the exact mask of all that is visible.

Every shape is drawn twice: in color into the image, and in its own number into a map of owners. What is painted
over loses its pixels in both, so masks are exact and know of occlusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pad_pipeline.miniature.brush import Brush, Color, Owner
from pad_pipeline.miniature.kinds import PARTS, THINGS, Kind

COLOURS: dict[str, Color] = {
    "red": (205, 40, 40),
    "blue": (45, 80, 205),
    "green": (45, 145, 60),
    "yellow": (238, 208, 55),
    "white": (242, 242, 238),
    "orange": (238, 138, 35),
    "purple": (130, 60, 165),
    "pink": (240, 150, 190),
    "brown": (125, 80, 45),
    "gray": (130, 132, 138),
    "black": (42, 40, 45),
}
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
"""Label -> color and texture."""
UPPER_OF: dict[str, tuple[str, ...]] = {
    "grass": ("sky", "night"),
    "sand": ("sky", "night"),
    "sea": ("sky", "night"),
    "road": ("sky", "night", "wall"),
    "snow": ("sky", "night"),
    "floor": ("wall",),
}
"""What may stand behind each ground."""
LABELS: tuple[str, ...] = (*THINGS, *PARTS, *STUFF)
"""Every label that a scene can hold."""

MIN_PIXELS = 20
"""A part or a piece of ground of which fewer pixels can be seen is no region; nobody could name it."""
MIN_VISIBLE = 0.6
"""A thing hides no more of another than leaves about this share of it to be seen."""


class TrueRegion(NamedTuple):
    """One labeled thing, part or stuff that can be seen."""

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


class Thing(NamedTuple):
    """What can be said of a thing besides where it is."""

    kind: str
    color: str
    """A word, or "" where all of its kind have the same."""
    size: str
    """`small`, `large`, or "" for neither."""
    texture: str
    """`striped`, `dotted`, `checked`, or "" for plain."""
    air: bool
    region: int
    """Its place in `Scene.regions`."""


@dataclass
class Scene:
    """A drawn image and all that is true of it."""

    image: Image.Image
    regions: list[TrueRegion]
    """Things, then parts, then stuff."""
    things: list[Thing]
    """From the farthest to the nearest."""
    upper: str
    lower: str


EDGES = (128, 224)
"""The shortest and the longest edge of an image, in pixels."""


def draw_scene(seed: int, index: int, size: tuple[int, int] | None = None, most: int = 5) -> Scene:
    """Scene `index` of the world `seed`; the same arguments always give the same scene.

    Args:
        seed: of the world.
        index: of the scene in it.
        size: width and height, in pixels; by default each is drawn from `EDGES`.
        most: things in it, at most; at least one.
    """
    rng = np.random.default_rng((seed, index))
    drawn = rng.integers(EDGES[0], EDGES[1] + 1, 2)  # drawn in any case, so that a given size changes nothing else
    width, height = size or (int(drawn[0]), int(drawn[1]))
    lower = str(rng.choice(list(UPPER_OF)))
    upper = str(rng.choice(UPPER_OF[lower]))
    background, ground = _background(rng, width, height, upper, lower)
    canvas_image, owner_map = Image.fromarray(background), Image.fromarray(ground)
    canvas = ImageDraw.Draw(canvas_image), ImageDraw.Draw(owner_map)
    owners = [Owner(upper, -1, 0), Owner(lower, -1, 1), Owner("hill", -1, 2)]  # stuff belongs to no thing

    made: list[tuple[Brush, Thing]] = []
    for kind, foot, place in _places(rng, width, height, int(rng.integers(1, most + 1)), upper):
        made.append(_draw_thing(rng, kind, foot, place, min(width, height), canvas, owners, len(made)))
    pixels = np.asarray(canvas_image).astype(np.float32)
    owner = np.asarray(owner_map)
    _clothe(rng, pixels, owner, owners, made)
    pixels *= rng.uniform(0.72, 0.88) if upper == "night" else rng.uniform(0.9, 1.08)
    grey = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(2, 8)
    pixels += grey + rng.standard_normal((height, width, 3), np.float32) * 2
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    regions, places = _regions(owner, owners, [thing.kind for _, thing in made])
    things = [thing._replace(region=places[number]) for number, (_, thing) in enumerate(made) if number in places]
    return Scene(image, regions, things, upper, lower)


def _background(
    rng: np.random.Generator, width: int, height: int, upper: str, lower: str
) -> tuple[np.ndarray, np.ndarray]:
    """The image without things, uint8 `[H, W, 3]`, and who owns its pixels, int32 `[H, W]`."""
    horizon = int(height * rng.uniform(0.35, 0.6))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = np.where(y < horizon, 1, 2).astype(np.int32)
    if upper != "wall" and rng.random() < 0.4:
        top = horizon - height * rng.uniform(0.1, 0.22) * np.cos((x / width - rng.uniform(0.2, 0.8)) * 2.2)
        ground[(y >= top) & (y < horizon)] = 3
    pixels = np.zeros((height, width, 3), np.float32)
    for number, stuff in enumerate((upper, lower, "hill"), 1):
        color, texture = STUFF[stuff]
        shade = np.array(color, np.float32) + rng.normal(0, 6, 3)
        pattern = _ground_texture(rng, texture, x, y)
        here = ground == number
        pixels[here] = shade + pattern[here, None]
    # Clutter: specks and dashes that have no name.
    for _ in range(rng.integers(0, 9)):
        cx, cy, r = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(1, 4))
        pixels[max(cy - r, 0) : cy + 1, max(cx - 2 * r, 0) : cx + r] += rng.uniform(-45, 45)
    return np.clip(pixels, 0, 255).astype(np.uint8), ground


def _ground_texture(rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Grey levels to add, float32 `[H, W]`."""
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


def _places(
    rng: np.random.Generator, width: int, height: int, count: int, upper: str
) -> list[tuple[str, float, tuple[float, float, float]]]:
    """Kind, place of the foot (for the order of painting), and center and scale of each thing; far ones first."""
    edge, found = min(width, height), []
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(count):
        kind = str(rng.choice(list(THINGS)))
        air = THINGS[kind].air
        for _ in range(8):
            foot = float(rng.uniform(0.62, 1.0)) * height
            scale = edge * float(rng.uniform(0.13, 0.27))
            if air:
                y, scale = float(rng.uniform(0.12, 0.5)) * height, scale * 0.85
                y = max(y, scale * 0.9)
                foot = 0.0  # all that hangs in the air is behind what stands on the ground
            else:
                scale *= 0.35 + 0.7 * foot / height
                y = foot - scale * 0.95
            wide = scale * THINGS[kind].wide
            x = float(rng.uniform(min(wide * 0.7, width / 2), max(width - wide * 0.7, width / 2)))
            box = (x - wide, y - scale, x + wide, y + scale)
            if all(_hidden(box, other) < 1 - MIN_VISIBLE for other in boxes):
                boxes.append(box)
                found.append((kind, foot, (x, y, scale)))
                break
    return sorted(found, key=lambda place: place[1])


def _hidden(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The share that two boxes have in common of the smaller one."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(across, 0) * max(down, 0) / smaller


def _draw_thing(
    rng: np.random.Generator,
    kind: str,
    foot: float,
    place: tuple[float, float, float],
    edge: int,
    canvas: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    owners: list[Owner],
    number: int,
) -> tuple[Brush, Thing]:
    known: Kind = THINGS[kind]
    x, y, scale = place
    shade = str(rng.choice(known.shades or list(COLOURS)))
    red, green, blue = (int(np.clip(level + rng.normal(0, 8), 0, 255)) for level in COLOURS[shade])
    style = rng.integers(4)  # flat, outlined, shaded (see _clothe), sketched
    brush = Brush(
        *canvas, owners, number, rng, (x, y), scale, float(rng.uniform(-known.turn, known.turn)), bool(rng.integers(2)),
        (red, green, blue), outline=bool(style in (1, 3)), wobble=0.02 if style == 3 else 0.0,
    )  # fmt: skip
    known.draw(brush)
    share = scale / edge
    size = "small" if share < 0.14 else "large" if share > 0.21 else ""
    texture = str(rng.choice(TEXTURES)) if rng.random() < 0.35 and len(known.shades) != 1 else ""
    color = shade if len(known.shades) != 1 else ""
    return brush, Thing(kind, color, size, texture, known.air, -1)


def _clothe(
    rng: np.random.Generator,
    pixels: np.ndarray,
    owner: np.ndarray,
    owners: list[Owner],
    made: list[tuple[Brush, Thing]],
) -> None:
    """Texture and shading, laid over the pixels of each thing that can be seen."""
    for number, (brush, thing) in enumerate(made):
        shaded = rng.random() < 0.3
        if not (shaded or thing.texture):
            continue
        # Its shapes were drawn one after another, so its numbers in the owner map have no gap.
        mine = [place for place, of in enumerate(owners, 1) if of.thing == number]
        body = np.zeros(len(owners) + 1, bool)
        # The parts that are most of what one sees of a thing are clothed with its body.
        body[[place for place in mine if owners[place - 1].part in ("", "petal", "cap", "leaves", "wing")]] = True
        reach = 1.6 * brush.scale
        x0, x1 = max(int(brush.center[0] - reach), 0), max(int(brush.center[0] + reach) + 1, 0)
        y0, y1 = max(int(brush.center[1] - reach), 0), max(int(brush.center[1] + reach) + 1, 0)
        window = owner[y0:y1, x0:x1]
        y, x = np.mgrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]].astype(np.float32)
        here = body[window]
        if thing.texture:
            dark = 75 if sum(brush.main) > 380 else -75  # what is taken away; a dark thing gets light marks
            pixels[y0:y1, x0:x1][here & _marks(thing.texture, x, y, max(brush.scale * 0.34, 5.0))] -= dark
        if shaded:
            whole = (window >= mine[0]) & (window <= mine[-1])
            pixels[y0:y1, x0:x1] += np.where(whole, (brush.center[0] - x) / brush.scale * 22, 0)[..., None]


def _marks(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Where a texture's marks are, bool."""
    if texture == "striped":
        return (x + y) % period < period * 0.42
    if texture == "checked":
        return (x % period < period / 2) ^ (y % period < period / 2)
    return ((x % period) - period / 2) ** 2 + ((y % period) - period / 2) ** 2 < (period * 0.27) ** 2


def _regions(owner: np.ndarray, owners: list[Owner], kinds: list[str]) -> tuple[list[TrueRegion], dict[int, int]]:
    """Things, parts and stuff that can be seen, and the place of each thing among them."""
    groups: dict[tuple[str, str, int, int], list[int]] = {}
    for number, (part, thing, instance) in enumerate(owners, 1):
        if thing >= 0:
            groups.setdefault(("thing", kinds[thing], thing, 0), []).append(number)
            if part:
                groups.setdefault(("part", part, thing, instance), []).append(number)
        else:
            groups["stuff", part, -1, instance] = [number]
    found: list[tuple[str, np.ndarray, str]] = []
    places: dict[int, int] = {}
    order = ("thing", "part", "stuff")
    for (kind, label, thing, _), numbers in sorted(groups.items(), key=lambda entry: order.index(entry[0][0])):
        mine = np.zeros(len(owners) + 1, bool)
        mine[numbers] = True
        mask = mine[owner]
        if np.count_nonzero(mask) >= MIN_PIXELS:
            if kind == "thing":
                places[thing] = len(found)
            found.append((label, mask, kind))
    return [TrueRegion(label, mask, kind) for label, mask, kind in found], places
