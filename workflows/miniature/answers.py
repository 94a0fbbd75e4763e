"""What a trained multimodal model says of drawn scenes, and how much of it is true: captions by their slots, boxes by
their overlap."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pad_pipeline.evaluation.boxes import Expression, score_boxes
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import REFER, caption, parses, refer
from pad_pipeline.miniature.world import COLOURS, SIZES, TEXTURES, Scene
from pad_pipeline.training.chat import Chat

CAPTION_TOKENS = 100
"""More than the longest caption has."""
BOX_TOKENS = 32
"""More than a box has: 21 and its end."""

# ---- captions


class Said(NamedTuple):
    """What a caption says of a thing; "" for what it does not."""

    kind: str
    color: str
    size: str
    texture: str


class Slots(NamedTuple):
    """What a caption says."""

    lower: str
    """The ground."""
    position: str
    """`under the sky`, `at night`, `in front of the wall`."""
    things: list[Said]


_GROUND = re.compile(r"the (\w+) (under the sky|at night|in front of the wall)")
_THING = re.compile(
    rf"\ban? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?(?:({'|'.join(TEXTURES)}) )?({'|'.join(THINGS)})\b"
)


def slots_of(text: str) -> Slots | None:
    """What a caption says; None where it is no sentence of the world's grammar."""
    if not parses(text):
        return None
    ground = _GROUND.search(text)
    assert ground, text
    things = [Said(kind, color, size, texture) for size, color, texture, kind in _THING.findall(text)]
    return Slots(ground[1], ground[2], things)


@dataclass
class CaptionScore:
    """Slots that are right, by what they tell; the rates come out of them."""

    captions: int = 0
    parsed: int = 0
    right: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)

    def share(self, *names: str) -> float:
        """The share that is right of the slots of these names; of all without a name."""
        chosen = names or tuple(self.slots)
        return sum(self.right.get(n, 0) for n in chosen) / max(sum(self.slots.get(n, 0) for n in chosen), 1)

    def rates(self) -> dict[str, float]:
        """The share of all slots that is right, of those of kinds, and of captions that are sentences."""
        parse = self.parsed / max(self.captions, 1)
        return {"slots": self.share(), "kinds": self.share("kind"), "parse": parse}

    def add(self, text: str, truth: str) -> None:
        """Take a caption.

        A slot is a word that the truth has or that the caption makes up: ground, place, and each thing's kind, color,
        size and texture. So nothing is gained by silence, and invented things cost. Things are told apart by what fits
        best, whatever their order; a caption that is no sentence of the grammar has nothing right.
        """
        true, said = slots_of(truth), slots_of(text)
        assert true, truth
        self.captions += 1
        self.parsed += said is not None
        said = said or Slots("", "", [])
        pairs = [("ground", true.lower, said.lower), ("place", true.position, said.position)]
        for mine, yours in _matched(true.things, said.things):
            pairs += [(name, mine[at], yours[at]) for at, name in enumerate(Said._fields)]
        for name, wanted, found in pairs:
            if wanted or found:
                self.slots[name] = self.slots.get(name, 0) + 1
                self.right[name] = self.right.get(name, 0) + (wanted == found)


_NOTHING = Said("", "", "", "")


def _matched(true: list[Said], said: list[Said]) -> list[tuple[Said, Said]]:
    """Pairs of things, the likest first; what is missing or made up is paired with nothing."""
    positions = [(a, b) for a in range(len(true)) for b in range(len(said))]
    positions.sort(key=lambda pair: -_common(true[pair[0]], said[pair[1]]))
    left, free, pairs = set(range(len(true))), set(range(len(said))), []
    for a, b in positions:
        if a in left and b in free:
            left.remove(a)
            free.remove(b)
            pairs.append((true[a], said[b]))
    return pairs + [(true[a], _NOTHING) for a in sorted(left)] + [(_NOTHING, said[b]) for b in sorted(free)]


def _common(a: Said, b: Said) -> int:
    words = sum(x == y != "" for x, y in zip(a, b, strict=True))
    return words + 4 * (a.kind == b.kind)  # a red car is rather the other car, of any color, than another red thing


def score_captions(chat: Chat, scenes: list[Scene], question: str) -> CaptionScore:
    """Score the captions that a model gives scenes against their own.

    Args:
        chat: the model.
        scenes: with their truth.
        question: asks for a caption; "" for a model of template `plain`, which goes on from an image by itself.
    """
    score = CaptionScore()
    asked = [chat.prepare(scene.image, question) if question else chat.show(scene.image) for scene in scenes]
    said = chat.answers(asked, CAPTION_TOKENS, one_line=not question)
    for scene, text in zip(scenes, said, strict=True):
        score.add(text, caption(scene))
    return score


# ---- boxes


def expressions_of(scenes: list[Scene]) -> list[Expression]:
    """Return an expression for every thing that one fits alone. `image` is the scene's number: it has no file."""
    return [
        Expression(str(number), found.phrase, scene.regions[found.region].box, scene.image.size)
        for number, scene in enumerate(scenes)
        for found in refer(scene)
    ]


def ask_boxes(chat: Chat, scenes: list[Scene]) -> dict[str, Any]:
    """Ask for a box of every expression, as the dialogues do, and return the scores of `score_boxes`."""
    expressions = expressions_of(scenes)
    asked = [chat.prepare(scenes[int(one.image)].image, REFER + one.text) for one in expressions]
    return score_boxes(expressions, chat.answers(asked, BOX_TOKENS))
