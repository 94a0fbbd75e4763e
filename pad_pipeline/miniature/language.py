"""Write texts about scenes: captions, questions with answers, referring expressions. Check captions by a grammar."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from pad_pipeline.miniature.kinds import PARTS, THINGS
from pad_pipeline.miniature.world import BACKDROPS, COLORS, SIZES, TEXTURES, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
SIDES = ("on the left", "in the middle", "on the right")
_PLACE = {"sky": "under the sky", "night": "at night", "wall": "in front of the wall"}
"""The end of a caption for each kind of stuff above the horizon."""
DESCRIBE_PROMPTS = (
    "Describe the picture briefly.",
    "Give a short caption of the image.",
    "What is in the picture?",
    "Say in one sentence what can be seen.",
)
REFER_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: "
"""LLaVA-1.5's prompt for referring expressions."""


class ReferringExpression(NamedTuple):
    """A referring expression: a phrase that fits only one thing in its scene."""

    phrase: str
    region: int
    """The index of the thing in `Scene.regions`."""


def phrase(thing: Thing, article: str = "") -> str:
    """Return the phrase for a thing, such as `small red striped car`, after `article` (`a` becomes `an` if needed)."""
    words = " ".join(word for word in (thing.size, thing.color, thing.texture, thing.kind) if word)
    return with_article(words) if article == "a" else f"{article} {words}".strip()


def with_article(words: str) -> str:
    """Return the words with the right article before them: `a car`, `an apple`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(kind: str) -> str:
    """Return the plural of a kind: `cars`, `buses`, `butterflies`."""
    odd = {"fish": "fish", "butterfly": "butterflies", "person": "people"}
    return odd.get(kind) or kind + ("es" if kind.endswith("s") else "s")


def listed(items: list[str]) -> str:
    """Join items to an English list: `a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def caption(scene: Scene) -> str:
    """Return the caption of a scene, always the same: its things on the ground, then those in the air.

    The grammar is `THINGS on the GROUND PLACE[, with THINGS above].` or `on the GROUND PLACE are THINGS[, with THINGS
    above].`
    """
    standing = [phrase(thing, "a") for thing in scene.things if not thing.air]
    hanging = [phrase(thing, "a") for thing in scene.things if thing.air]
    where = f"the {scene.ground} {_PLACE[scene.backdrop]}"
    if not standing:
        return f"{listed(hanging)} above {where}." if hanging else f"{where}."
    above = f", with {listed(hanging)} above" if hanging else ""
    if scene.image.width % 3:  # an arbitrary choice, but always the same for a scene
        return f"{listed(standing)} on {where}{above}."
    return f"on {where} {'are' if len(standing) > 1 else 'is'} {listed(standing)}{above}."


def _phrases(air: bool) -> str:
    """Return a regular expression for all phrases, with article, about things on the ground or in the air.

    Kinds with only one color are named without color and texture.
    """
    phrases = []
    for kind, known in THINGS.items():
        if known.air is air:
            colors = known.shades or tuple(COLORS)
            words = [f"(?:(?:{'|'.join(SIZES)}) )?"]
            if len(colors) > 1:
                words += [f"(?:{'|'.join(colors)}) ", f"(?:(?:{'|'.join(TEXTURES)}) )?"]
            phrases.append("".join(words) + kind)
    return rf"(?:a (?![aeiou])|an (?=[aeiou]))(?:{'|'.join(phrases)})\b"


def _grammar() -> re.Pattern[str]:
    """Return the grammar of captions as a regular expression."""
    standing, hanging = _phrases(air=False), _phrases(air=True)
    several = rf"{standing}(?:, {standing})* and {standing}"
    above = rf"{hanging}(?:(?:, {hanging})* and {hanging})?"
    positions = [f"the {ground} {_PLACE[behind]}" for ground, backdrops in BACKDROPS.items() for behind in backdrops]
    where = f"(?:{'|'.join(positions)})"
    stand = rf"(?:(?:{standing}|{several}) on {where}|on {where} (?:is {standing}|are {several}))"
    return re.compile(rf"(?:{where}|{above} above {where}|{stand}(?:, with {above} above)?)\.")


_CAPTION = _grammar()


def is_caption(text: str) -> bool:
    """Return whether a text follows the grammar of captions."""
    return _CAPTION.fullmatch(text.strip()) is not None


def is_kind_of(kind: str, asked: str) -> bool:
    """Return whether a thing of this `kind` is also an `asked`: a pine tree is also a tree."""
    return kind == asked or kind.endswith(f" {asked}")


def referring_expressions(scene: Scene) -> list[ReferringExpression]:
    """Return a referring expression for each thing that its attributes or its side of the image identify."""
    expressions = []
    for thing in scene.things:
        same = [other for other in scene.things if is_kind_of(other.kind, thing.kind)]
        ways = [("the " + thing.kind, same)]
        if thing.color:
            ways.append((f"the {thing.color} {thing.kind}", [other for other in same if other.color == thing.color]))
        attributes = [(position, word) for position, word in enumerate(thing[1:4], 1) if word]  # color, size, texture
        alike = [other for other in same if all(other[position] == word for position, word in attributes)]
        here = side(scene, thing)
        beside = [other for other in same if side(scene, other) == here]
        ways += [(phrase(thing, "the"), alike), (f"the {thing.kind} {here}", beside)]
        if words := next((words for words, fitting in ways if len(fitting) == 1), None):
            expressions.append(ReferringExpression(words, thing.region))
    return expressions


def side(scene: Scene, thing: Thing) -> str:
    """Return the third of the image, of `SIDES`, with the center of the thing's box."""
    x0, _, x1, _ = scene.regions[thing.region].box
    return SIDES[min(int(1.5 * (x0 + x1) / scene.image.width), 2)]


def llava_box(scene: Scene, region: int) -> str:
    """Return a region's box in LLaVA-1.5's format: `[x0, y0, x1, y1]` in fractions of the image padded to a square."""
    width, height = scene.image.size
    edge = max(width, height)
    left, top = (edge - width) // 2, (edge - height) // 2
    x0, y0, x1, y1 = scene.regions[region].box
    corners = ((x0 + left) / edge, (y0 + top) / edge, (x1 + left) / edge, (y1 + top) / edge)
    return "[" + ", ".join(f"{corner:.2f}" for corner in corners) + "]"


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return pairs of a question about a scene and its answer, in random order, for a conversation."""
    turns = [(str(rng.choice(DESCRIBE_PROMPTS)), caption(scene))]
    turns += [(REFER_PROMPT + one.phrase, llava_box(scene, one.region)) for one in referring_expressions(scene)]
    kinds = [thing.kind for thing in scene.things]

    def count(asked: str) -> int:
        return sum(is_kind_of(kind, asked) for kind in kinds)

    # Ask about each thing that is the only one of its kind.
    for thing in scene.things:
        if count(thing.kind) > 1:
            continue
        if thing.color:
            turns.append((f"What colour is the {thing.kind}?", f"the {thing.kind} is {thing.color}."))
        turns.append((f"Where is the {thing.kind}?", f"the {thing.kind} is {side(scene, thing)}."))
        whole = scene.regions[thing.region].mask
        seen = {region.label for region in scene.regions if region.kind == "part" and (region.mask & whole).any()}
        if seen:
            parts = listed([name for name in PARTS if name in seen])
            turns.append((f"Which parts of the {thing.kind} can be seen?", f"{parts}."))
    # Ask about kinds, but not about stars at night, because that sky has many stars that are not things.
    askable = [kind for kind in THINGS if (kind, scene.backdrop) != ("star", "night")]
    present = [kind for kind in kinds if kind in askable]
    for form in ("How many", "Is there"):
        asked = str(rng.choice(present if present and rng.random() < 0.5 else askable))
        number = count(asked)
        if form == "How many":
            answer = f"there is one {asked}." if number == 1 else f"there are {NUMBERS[number]} {plural(asked)}."
            turns.append((f"How many {plural(asked)} are there?", answer))
        else:
            turns.append((f"Is there {with_article(asked)}?", "yes." if number else "no."))
    turns.append(("Where is this?", f"on the {scene.ground} {_PLACE[scene.backdrop]}."))
    return [turns[position] for position in rng.permutation(len(turns))]
