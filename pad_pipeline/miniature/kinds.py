"""The kinds of things in drawn scenes, with their parts. Most have several ways to draw them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pad_pipeline.miniature.brush import CREAM, DARK, GLASS, GOLD, LEAF, METAL, WOOD, Brush


class Artist(Brush):
    """Draws a thing of each kind, with one method for a kind. `pick` chooses among the ways to draw it."""

    def _house(self) -> None:
        if self.pick(2):
            self.box("chimney", [(0.4, -0.95, 0.62, -0.3)], (150, 80, 65))
        self.box("", [(-0.85, -0.2, 0.85, 1.0)])
        top = 0.0 if self.pick(2) else 0.45
        self.polygon("roof", [(-1.05, -0.2), (-top, -0.95), (top, -0.95), (1.05, -0.2)], (125, 62, 48))
        self.box("door", [(-0.17, 0.35, 0.2, 1.0)], WOOD)
        self.box("window", [(-0.65, 0.05, -0.32, 0.4), (0.35, 0.05, 0.68, 0.4)], GLASS)

    def _car(self) -> None:
        self.box("", [(-1.25, -0.05, 1.25, 0.6)])
        back = -0.75 if self.pick(2) else -1.15
        self.polygon("", [(back, -0.05), (back + 0.3, -0.65), (0.5, -0.65), (0.85, -0.05)])
        self.polygon("window", [(back + 0.18, -0.08), (back + 0.36, -0.53), (-0.05, -0.53), (-0.05, -0.08)], GLASS)
        self.polygon("window", [(0.06, -0.08), (0.06, -0.53), (0.44, -0.53), (0.66, -0.08)], GLASS)
        self.disc("headlight", [(1.12, 0.18)], 0.13, 0.13, GOLD)
        self.disc("wheel", [(-0.7, 0.66), (0.7, 0.66)], 0.34, 0.34, DARK)

    def _bus(self) -> None:
        self.box("", [(-1.5, -0.75, 1.5, 0.7)])
        self.box("window", [(x, -0.55, x + 0.5, -0.02) for x in (-1.3, -0.65, 0.0)], GLASS)
        self.box("door", [(0.75, -0.5, 1.2, 0.65)], (215, 225, 230))
        self.disc("wheel", [(-0.85, 0.72), (0.5, 0.72)], 0.28, 0.28, DARK)

    def _truck(self) -> None:
        self.box("container", [(-1.4, -0.85, 0.45, 0.5)], CREAM if self.pick(2) else METAL)
        self.polygon("", [(0.5, -0.4), (1.0, -0.4), (1.35, 0.05), (1.35, 0.62), (-1.4, 0.62), (-1.4, 0.5), (0.5, 0.5)])
        self.polygon("window", [(0.68, -0.26), (0.94, -0.26), (1.18, 0.06), (0.68, 0.06)], GLASS)
        self.disc("wheel", [(x, 0.7) for x in (-0.95, -0.2, 0.9)], 0.29, 0.29, DARK)

    def _tree(self) -> None:
        self.box("trunk", [(-0.15, 0.0, 0.15, 1.0)], WOOD)
        crowns = [(0.0, -0.5), (-0.36, -0.15), (0.36, -0.15)] if self.pick(2) else [(0.0, -0.35)]
        size = 0.48 if len(crowns) > 1 else 0.65
        for step, (x, y) in enumerate(crowns):
            self.disc("leaves", [(x, y)], size, size * 0.92, join=step > 0)

    def _pine_tree(self) -> None:
        self.box("trunk", [(-0.12, 0.5, 0.12, 1.0)], WOOD)
        layers = 3 if self.pick(2) else 2
        for step in range(layers):
            foot, wide = 0.65 - 1.1 * step / layers, 0.75 - 0.16 * step
            self.polygon("", [(-wide, foot), (wide, foot), (0.0, foot - 1.0)])

    def _boat(self) -> None:
        self.polygon("", [(-1.05, 0.35), (1.05, 0.35), (0.7, 0.95), (-0.7, 0.95)])
        self.box("mast", [(-0.06, -1.0, 0.06, 0.35)], WOOD)
        self.polygon("sail", [(0.1, -0.95), (0.85, 0.25), (0.1, 0.25)], CREAM)
        if self.pick(2):
            self.polygon("sail", [(-0.1, -0.75), (-0.65, 0.25), (-0.1, 0.25)], CREAM)

    def _flower(self) -> None:
        self.box("stem", [(-0.08, 0.0, 0.08, 1.0)], LEAF)
        if self.pick(2):
            self.disc("leaf", [(0.3, 0.5)], 0.26, 0.13, LEAF)
        petals = 5 + self.pick(3)
        for step in range(petals):
            turn = step * 2 * math.pi / petals
            self.disc("petal", [(0.38 * math.cos(turn), -0.45 + 0.38 * math.sin(turn))], 0.25, 0.25, join=step > 0)
        self.disc("", [(0.0, -0.45)], 0.22, 0.22, GOLD)

    def _ball(self) -> None:
        self.disc("", [(0.0, 0.0)], 0.95, 0.95)
        if self.pick(2):
            self.box("band", [(-0.9, -0.22, 0.9, 0.22)], CREAM)
        else:
            self.disc("band", [(0.0, 0.0)], 0.4, 0.4, CREAM)

    def _fish(self) -> None:
        self.polygon("fin", [(-0.2, -0.35), (0.4, -0.75), (0.4, -0.25)])
        self.polygon("tail", [(0.65, 0.0), (1.25, -0.5), (1.1, 0.0), (1.25, 0.5)])
        self.disc("", [(0.0, 0.0)], 0.9, 0.5 + 0.12 * self.pick(2))
        self.disc("eye", [(-0.5, -0.12)], 0.14, 0.14, CREAM)
        self.disc("eye", [(-0.52, -0.12)], 0.07, 0.07, DARK, join=True)

    def _cup(self) -> None:
        self.disc("handle", [(0.7, 0.1)], 0.42, 0.42)
        foot = 0.35 + 0.25 * self.pick(2)
        self.polygon("", [(-0.75, -0.8), (0.75, -0.8), (foot, 0.95), (-foot, 0.95)])
        self.disc("", [(0.0, -0.8)], 0.75, 0.15, (90, 55, 35), join=True)

    def _bird(self) -> None:
        self.polygon("beak", [(-0.75, -0.5), (-1.2, -0.35), (-0.75, -0.25)], (235, 150, 40))
        self.polygon("tail", [(0.6, 0.0), (1.3, -0.25), (1.25, 0.2), (0.6, 0.35)])
        self.disc("", [(0.0, 0.15)], 0.85, 0.52)
        self.disc("", [(-0.55, -0.38)], 0.4, 0.36)
        self.polygon("wing", [(-0.3, 0.05), (0.45, -0.75 if self.pick(2) else 0.6), (0.55, 0.1)], (110, 115, 125))
        self.disc("eye", [(-0.68, -0.46)], 0.1, 0.1, DARK)

    def _cat(self) -> None:
        self.bar("tail", (0.55, 0.8), (1.15, 0.1) if self.pick(2) else (1.2, 0.75), 0.22)
        self.disc("", [(0.0, 0.5)], 0.62, 0.52)
        self.polygon("ear", [(-0.5, -0.5), (-0.45, -1.0), (-0.1, -0.68)])
        self.polygon("ear", [(0.5, -0.5), (0.45, -1.0), (0.1, -0.68)])
        self.disc("", [(0.0, -0.35)], 0.55, 0.45)
        self.disc("eye", [(-0.22, -0.42), (0.22, -0.42)], 0.12, 0.12, GOLD)
        self.polygon("nose", [(-0.1, -0.2), (0.1, -0.2), (0.0, -0.06)], (225, 120, 130))

    def _rabbit(self) -> None:
        spread = 0.08 + 0.2 * self.pick(2)
        self.polygon("ear", [(-0.35, -0.35), (-0.3 - spread, -1.05), (-0.1 - spread, -1.05), (-0.05, -0.4)])
        self.polygon("ear", [(0.35, -0.35), (0.3 + spread, -1.05), (0.1 + spread, -1.05), (0.05, -0.4)])
        self.disc("tail", [(0.6, 0.75)], 0.22, 0.22, CREAM)
        self.disc("", [(0.0, 0.55)], 0.6, 0.45)
        self.disc("", [(0.0, -0.1)], 0.42, 0.38)
        self.disc("eye", [(-0.17, -0.17), (0.17, -0.17)], 0.09, 0.09, DARK)

    def _butterfly(self) -> None:
        low = 0.45 + 0.2 * self.pick(2)
        for side in (-1, 1):
            self.polygon("wing", [(0, -0.1), (side * 0.85, -0.95), (side * 1.1, -0.3), (side * 0.25, 0.15)])
            self.polygon("wing", [(0, 0.05), (side * 0.9, 0.15), (side * low, 0.9)])
        self.disc("", [(0.0, 0.0)], 0.13, 0.75, DARK)

    def _kite(self) -> None:
        self.polygon("ribbon", [(0.0, 0.4), (0.18, 0.62), (-0.05, 0.8), (0.2, 1.1), (0.02, 1.1), (-0.22, 0.8)], CREAM)
        wide = 0.6 + 0.25 * self.pick(2)
        self.polygon("", [(0.0, -1.0), (wide, -0.3), (0.0, 0.55), (-wide, -0.3)])
        self.polygon("band", [(0.0, -1.0), (0.14, -0.3), (0.0, 0.55), (-0.14, -0.3)], CREAM)

    def _umbrella(self) -> None:
        self.box("pole", [(-0.06, -0.4, 0.06, 0.85)], DARK)
        self.box("handle", [(-0.06, 0.78, 0.36, 0.98)], WOOD)
        steps = [math.pi + math.pi * step / 12 for step in range(13)]
        dome = [(1.05 * math.cos(turn), 0.1 + 1.05 * math.sin(turn)) for turn in steps]
        if self.pick(2):
            dome += [(0.7, 0.25), (0.35, 0.05), (0.0, 0.25), (-0.35, 0.05), (-0.7, 0.25)]
        self.polygon("", dome)

    def _mushroom(self) -> None:
        self.polygon("stem", [(-0.28, -0.1), (0.28, -0.1), (0.38, 1.0), (-0.38, 1.0)], CREAM)
        steps = [math.pi + math.pi * step / 12 for step in range(13)]
        high = 0.85 + 0.2 * self.pick(2)
        self.polygon("cap", [(math.cos(turn), 0.1 + high * math.sin(turn)) for turn in steps])
        self.disc("cap", [(-0.5, -0.2), (0.05, -0.45), (0.5, -0.15)], 0.13, 0.12, CREAM, join=True)

    def _snowman(self) -> None:
        self.disc("", [(0.0, 0.55)], 0.6, 0.48, (248, 250, 252))
        self.disc("", [(0.0, -0.2)], 0.42, 0.38, (248, 250, 252))
        hat = ((40, 40, 48), (200, 45, 45), (50, 85, 200))[self.pick(3)]
        self.box("hat", [(-0.48, -0.58, 0.48, -0.46)], hat)
        self.box("hat", [(-0.3, -1.0, 0.3, -0.55)], hat, join=True)
        self.polygon("nose", [(-0.05, -0.27), (0.5 if self.pick(2) else 0.38, -0.17), (-0.05, -0.08)], (240, 135, 35))
        self.disc("button", [(0.0, 0.35), (0.0, 0.65)], 0.09, 0.09, DARK)

    def _table(self) -> None:
        self.box("leg", [(-0.95, -0.2, -0.75, 1.0), (0.75, -0.2, 0.95, 1.0)], WOOD)
        top, wide, y0, y1 = (1.15, 1.15, -0.5, -0.15) if self.pick(2) else (0.85, 1.2, -0.6, -0.12)
        self.polygon("", [(-top, y0), (top, y0), (wide, y1), (-wide, y1)])

    def _chair(self) -> None:
        self.box("leg", [(-0.55, 0.2, -0.38, 1.0), (0.38, 0.2, 0.55, 1.0)], WOOD)
        left, right = (-0.58, -0.36) if self.pick(2) else (-0.85, -0.6)
        self.polygon("backrest", [(left, -1.0), (right, -1.0), (-0.36, 0.1), (-0.58, 0.1)])
        self.box("", [(-0.6, 0.05, 0.62, 0.3)])

    def _street_lamp(self) -> None:
        self.box("pole", [(-0.1, -0.6, 0.1, 1.0)], DARK)
        self.box("", [(-0.35, 0.85, 0.35, 1.0)])
        if self.pick(2):
            self.disc("bulb", [(0.0, -0.7)], 0.3, 0.3, (255, 235, 150))
        else:
            self.polygon("bulb", [(-0.2, -0.55), (0.2, -0.55), (0.34, -0.95), (-0.34, -0.95)], (255, 235, 150))
            self.polygon("", [(-0.42, -0.9), (0.42, -0.9), (0.0, -1.1)])

    def _clock(self) -> None:
        if self.pick(2):
            self.disc("", [(0.0, 0.0)], 0.98, 0.98)
        else:
            self.box("", [(-0.92, -0.92, 0.92, 0.92)])
        self.disc("dial", [(0.0, 0.0)], 0.72, 0.72, CREAM)
        for turn, length in ((self.rng.uniform(0, 6.3), 0.6), (self.rng.uniform(0, 6.3), 0.42)):
            self.bar("hand", (0.0, 0.0), (length * math.cos(turn), length * math.sin(turn)), 0.13, DARK)

    def _robot(self) -> None:
        self.box("antenna", [(-0.05, -1.05, 0.05, -0.75)], DARK)
        self.box("arm", [(-0.85, -0.2, -0.55, 0.45), (0.55, -0.2, 0.85, 0.45)], METAL)
        self.box("leg", [(-0.4, 0.5, -0.12, 1.0), (0.12, 0.5, 0.4, 1.0)], METAL)
        self.box("", [(-0.52, -0.28, 0.52, 0.55)])
        if self.pick(2):
            self.box("head", [(-0.4, -0.82, 0.4, -0.3)], METAL)
        else:
            self.disc("head", [(0.0, -0.56)], 0.38, 0.3, METAL)
        self.disc("eye", [(-0.17, -0.58), (0.17, -0.58)], 0.1, 0.1, (220, 60, 50))

    def _rocket(self) -> None:
        self.polygon("flame", [(-0.25, 0.6), (0.25, 0.6), (0.0, 1.1)], (245, 160, 40))
        self.polygon("fin", [(-0.3, 0.1), (-0.75, 0.75), (-0.3, 0.6)], (190, 60, 50))
        self.polygon("fin", [(0.3, 0.1), (0.75, 0.75), (0.3, 0.6)], (190, 60, 50))
        self.polygon("", [(0.0, -1.05), (0.34, -0.5), (0.34, 0.65), (-0.34, 0.65), (-0.34, -0.5)])
        self.disc("window", [(0.0, -0.25)], 0.18, 0.18, GLASS)
        if self.pick(2):
            self.disc("window", [(0.0, 0.25)], 0.18, 0.18, GLASS)

    def _apple(self) -> None:
        self.box("stem", [(-0.07, -1.0, 0.07, -0.5)], WOOD)
        self.disc("", [(-0.32, 0.15), (0.32, 0.15)], 0.58, 0.75)
        self.polygon("leaf", [(0.07, -0.7), (0.35, -1.0), (0.7, -0.85), (0.4, -0.6)], LEAF)

    def _book(self) -> None:
        if self.pick(2):
            self.polygon("", [(-1.1, -0.6), (0.0, -0.45), (1.1, -0.6), (1.1, 0.75), (0.0, 0.9), (-1.1, 0.75)])
            self.polygon("page", [(-0.98, -0.66), (-0.02, -0.5), (-0.02, 0.72), (-0.98, 0.58)], CREAM)
            self.polygon("page", [(0.98, -0.66), (0.02, -0.5), (0.02, 0.72), (0.98, 0.58)], CREAM)
        else:
            self.box("", [(-0.75, -0.95, 0.7, 0.95)])
            self.box("page", [(0.58, -0.85, 0.78, 0.85)], CREAM)
            self.box("band", [(-0.45, -0.6, 0.35, -0.25)], GOLD)

    def _person(self) -> None:
        trousers = (60, 65, 95) if self.pick(2) else (95, 80, 65)
        self.box("leg", [(-0.3, 0.35, -0.03, 1.0), (0.03, 0.35, 0.3, 1.0)], trousers)
        reach = 0.25 if self.pick(2) else -0.65
        self.bar("arm", (-0.32, -0.3), (-0.68, reach), 0.2, (225, 180, 150))
        self.bar("arm", (0.32, -0.3), (0.68, 0.25), 0.2, (225, 180, 150))
        self.polygon("", [(-0.38, -0.42), (0.38, -0.42), (0.33, 0.42), (-0.33, 0.42)])
        self.disc("head", [(0.0, -0.7)], 0.27, 0.29, (225, 180, 150))
        steps = [math.pi + math.pi * step / 8 for step in range(9)]
        self.polygon("hair", [(0.3 * math.cos(turn), -0.72 + 0.32 * math.sin(turn)) for turn in steps], (75, 48, 30))

    def _cactus(self) -> None:
        self.polygon("pot", [(-0.5, 0.5), (0.5, 0.5), (0.38, 1.0), (-0.38, 1.0)], (190, 100, 65))
        for step, (side, y) in enumerate(((-1, 0.0), (1, -0.25))):
            self.box("", [(side * 0.2, y, side * 0.72, y + 0.24)], join=step > 0)
            self.box("", [(side * 0.5, y - 0.4, side * 0.74, y + 0.24)], join=True)
        self.box("", [(-0.25, -0.95, 0.25, 0.5)], join=True)
        if self.pick(2):
            self.disc("petal", [(0.0, -0.95)], 0.25, 0.16, (235, 110, 160))

    def _balloon(self) -> None:
        bend = [(0.16, 0.7), (0.06, 1.0), (-0.06, 1.0), (0.04, 0.7)] if self.pick(2) else [(0.06, 1.0), (-0.05, 1.0)]
        self.polygon("string", [(-0.05, 0.3), (0.06, 0.3), *bend], DARK)
        self.polygon("", [(-0.14, 0.42), (0.14, 0.42), (0.0, 0.2)])
        self.disc("", [(0.0, -0.35)], 0.58, 0.66)

    def _sun(self) -> None:
        rays = 8 + 2 * self.pick(2)
        for step in range(rays):
            turn = 2 * math.pi * step / rays
            corners = ((turn - 0.25, 0.5), (turn, 1.0), (turn + 0.25, 0.5))
            self.polygon("ray", [(math.cos(t) * r, math.sin(t) * r) for t, r in corners], (248, 190, 60), join=step > 0)
        self.disc("", [(0.0, 0.0)], 0.58, 0.58, (252, 215, 80))

    def _moon(self) -> None:
        outer = [math.pi * (0.35 + 1.3 * step / 16) for step in range(17)]
        arc = [(0.9 * math.cos(turn), 0.9 * math.sin(turn)) for turn in outer]
        bend = -0.25 + 0.25 * self.pick(2)
        inner = [(bend + (x - bend) * 0.45 + 0.12, y * 0.93) for x, y in reversed(arc)]
        self.polygon("", arc + inner, (245, 235, 180))

    def _star(self) -> None:
        inner = 0.42 + 0.08 * self.pick(2)
        turns = [(math.pi * step / 5 - math.pi / 2, inner if step % 2 else 1.0) for step in range(10)]
        self.polygon("", [(r * math.cos(turn), 0.05 + r * math.sin(turn)) for turn, r in turns])

    def _cloud(self) -> None:
        puffs = [(-0.75, 0.2, 0.5), (-0.1, -0.15, 0.62), (0.65, 0.15, 0.52)]
        for step, (x, y, r) in enumerate(puffs + ([(0.2, 0.3, 0.5)] if self.pick(2) else [])):
            self.disc("", [(x, y)], r, r * 0.85, (250, 250, 252), join=step > 0)

    def _windmill(self) -> None:
        self.polygon("", [(-0.35, -0.4), (0.35, -0.4), (0.6, 1.0), (-0.6, 1.0)])
        self.box("door", [(-0.15, 0.6, 0.17, 1.0)], WOOD)
        start = 0.4 + 0.7 * self.pick(2)
        for step in range(4):
            turn = start + step * math.pi / 2
            self.bar("blade", (0.0, -0.4), (0.95 * math.cos(turn), -0.4 + 0.95 * math.sin(turn)), 0.22, CREAM)

    def _ladybug(self) -> None:
        self.disc("head", [(-0.72, 0.0)], 0.32, 0.36, DARK)
        self.disc("", [(0.1, 0.0)], 0.8, 0.68)
        spots = [(-0.2, -0.3), (0.35, -0.32), (-0.15, 0.32), (0.4, 0.3), (0.1, 0.0)]
        self.disc("spot", spots[: 4 + self.pick(2)], 0.15, 0.15, DARK)


class Kind(NamedTuple):
    """A kind of thing: how to draw it, and how it varies."""

    draw: Callable[[Artist], None]
    turn: float = 0.22
    """The largest rotation to either side in radians, with which the kind can still be recognized."""
    air: bool = False
    """Whether things of this kind are in the air."""
    shades: tuple[str, ...] = ()
    """The possible colors; empty for all. Captions do not mention the color if there is only one."""
    wide: float = 1.0
    """The ratio of width to height."""


_ROUND = math.pi
THINGS: dict[str, Kind] = {
    "house": Kind(Artist._house, 0.1),
    "car": Kind(Artist._car, wide=1.3),
    "bus": Kind(Artist._bus, wide=1.5),
    "truck": Kind(Artist._truck, wide=1.4),
    "tree": Kind(Artist._tree, 0.12, shades=("green", "orange", "yellow", "pink"), wide=0.8),
    "pine tree": Kind(Artist._pine_tree, 0.12, shades=("green", "blue", "white"), wide=0.75),
    "boat": Kind(Artist._boat),
    "flower": Kind(Artist._flower, 0.35, wide=0.65),
    "ball": Kind(Artist._ball, _ROUND),
    "fish": Kind(Artist._fish, 0.6, wide=1.2),
    "cup": Kind(Artist._cup),
    "bird": Kind(Artist._bird, 0.35, air=True, wide=1.2),
    "cat": Kind(Artist._cat),
    "rabbit": Kind(Artist._rabbit, wide=0.8),
    "butterfly": Kind(Artist._butterfly, 0.8, air=True, wide=1.1),
    "kite": Kind(Artist._kite, 0.6, air=True, wide=0.8),
    "umbrella": Kind(Artist._umbrella, 0.35, wide=1.05),
    "mushroom": Kind(Artist._mushroom),
    "snowman": Kind(Artist._snowman, 0.12, shades=("white",), wide=0.65),
    "table": Kind(Artist._table, 0.12, wide=1.2),
    "chair": Kind(Artist._chair, wide=0.75),
    "street lamp": Kind(Artist._street_lamp, 0.08, shades=("black",), wide=0.45),
    "clock": Kind(Artist._clock, 0.3, wide=0.95),
    "robot": Kind(Artist._robot, wide=0.85),
    "rocket": Kind(Artist._rocket, 0.7, air=True, wide=0.75),
    "apple": Kind(Artist._apple, 0.35, shades=("red", "green", "yellow"), wide=0.9),
    "book": Kind(Artist._book, 0.35),
    "person": Kind(Artist._person, 0.12, wide=0.7),
    "cactus": Kind(Artist._cactus, 0.12, shades=("green", "purple", "yellow"), wide=0.75),
    "balloon": Kind(Artist._balloon, 0.25, air=True, wide=0.6),
    "sun": Kind(Artist._sun, _ROUND, air=True, shades=("yellow",)),
    "moon": Kind(Artist._moon, 0.5, air=True, shades=("yellow",), wide=0.9),
    "star": Kind(Artist._star, _ROUND, air=True, shades=("yellow", "white", "orange", "pink")),
    "cloud": Kind(Artist._cloud, 0.1, air=True, shades=("white",), wide=1.2),
    "windmill": Kind(Artist._windmill, 0.08, wide=0.95),
    "ladybug": Kind(Artist._ladybug, 0.6, shades=("red", "orange", "yellow")),
}
PARTS = (
    "chimney", "roof", "door", "window", "headlight", "wheel", "container", "trunk", "leaves", "mast", "sail", "stem",
    "leaf", "petal", "band", "fin", "tail", "eye", "handle", "beak", "wing", "ear", "nose", "ribbon", "pole", "cap",
    "hat", "button", "leg", "backrest", "bulb", "dial", "hand", "antenna", "arm", "head", "flame", "page", "hair",
    "pot", "string", "ray", "blade", "spot",
)  # fmt: skip
