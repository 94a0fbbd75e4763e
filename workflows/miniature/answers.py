"""Score what a trained multimodal model says of drawn scenes: captions by their slots, boxes by their overlap."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pad_pipeline.evaluation.boxes import Expression, score_boxes
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import REFER_PROMPT, caption, is_caption, referring_expressions
from pad_pipeline.miniature.world import COLORS, SIZES, TEXTURES, Scene
from pad_pipeline.training.chat import Chat

CAPTION_TOKENS = 100
"""Number of tokens after which an answer is cut; the longest caption has fewer."""
BOX_TOKENS = 32
"""The same for a box, which has 21 tokens and its end."""


class Said(NamedTuple):
    """The words of a caption for a thing; "" for a word that is missing."""

    kind: str
    color: str
    size: str
    texture: str


class Slots(NamedTuple):
    """The slots of a caption."""

    ground: str
    position: str
    """`under the sky`, `at night`, `in front of the wall`."""
    things: list[Said]


_GROUND = re.compile(r"the (\w+) (under the sky|at night|in front of the wall)")
_THING = re.compile(
    rf"\ban? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?(?:({'|'.join(TEXTURES)}) )?({'|'.join(THINGS)})\b"
)


def slots_of(text: str) -> Slots | None:
    """Return the slots of a caption; None if it is no sentence of the world's grammar."""
    if not is_caption(text):
        return None
    ground = _GROUND.search(text)
    assert ground, text
    things = [Said(kind, color, size, texture) for size, color, texture, kind in _THING.findall(text)]
    return Slots(ground[1], ground[2], things)


@dataclass
class CaptionScore:
    """Counts of slots and of right slots, by name."""

    captions: int = 0
    parsed: int = 0
    right: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)

    def share(self, *names: str) -> float:
        """Return the share of the slots of these names that is right; without a name, of all slots."""
        chosen = names or tuple(self.slots)
        return sum(self.right[name] for name in chosen) / max(sum(self.slots[name] for name in chosen), 1)

    def rates(self) -> dict[str, float]:
        """Return the shares of all slots and of kinds that are right, and of captions that are sentences."""
        parse = self.parsed / max(self.captions, 1)
        return {"slots": self.share(), "kinds": self.share("kind"), "parse": parse}

    def add(self, text: str, truth: str) -> None:
        """Score a caption.

        A slot is a word that the truth has or that the caption makes up: ground, position, and each thing's kind,
        color, size and texture. So a shorter caption gains nothing, and invented things cost. Things are matched by
        what fits best, in any order; a caption that is no sentence of the grammar has nothing right.
        """
        true, said = slots_of(truth), slots_of(text)
        assert true, truth
        self.captions += 1
        self.parsed += said is not None
        said = said or Slots("", "", [])
        pairs = [("ground", true.ground, said.ground), ("place", true.position, said.position)]
        for mine, yours in _matched(true.things, said.things):
            pairs += [(name, mine[at], yours[at]) for at, name in enumerate(Said._fields)]
        for name, wanted, found in pairs:
            if wanted or found:
                self.slots[name] += 1
                self.right[name] += wanted == found


_NOTHING = Said("", "", "", "")


def _matched(true: list[Said], said: list[Said]) -> list[tuple[Said, Said]]:
    """Return pairs of things, the most similar first; a thing that is missing or made up is paired with nothing."""
    positions = [(a, b) for a in range(len(true)) for b in range(len(said))]
    positions.sort(key=lambda pair: -_common(true[pair[0]], said[pair[1]]))
    left, free, pairs = dict(enumerate(true)), dict(enumerate(said)), []
    for a, b in positions:
        if a in left and b in free:
            pairs.append((left.pop(a), free.pop(b)))
    return pairs + [(one, _NOTHING) for one in left.values()] + [(_NOTHING, one) for one in free.values()]


def _common(a: Said, b: Said) -> int:
    words = sum(x == y != "" for x, y in zip(a, b, strict=True))
    return words + 4 * (a.kind == b.kind)  # a red car is more like a car of any color than like another red thing


def score_captions(chat: Chat, scenes: list[Scene], question: str) -> CaptionScore:
    """Score the captions that a model gives scenes against the scenes' own.

    Args:
        chat: the model.
        scenes: the scenes.
        question: asks for a caption; "" for a model of template `plain`, which continues an image with its caption.
    """
    score = CaptionScore()
    asked = [chat.prepare(scene.image, question) if question else chat.prepare_caption(scene.image) for scene in scenes]
    said = chat.answers(asked, CAPTION_TOKENS, one_line=not question)
    for scene, text in zip(scenes, said, strict=True):
        score.add(text, caption(scene))
    return score


def expressions_of(scenes: list[Scene]) -> list[Expression]:
    """Return an expression for every thing that has one that fits no other. `image` is the number of the scene, which
    has no file."""
    return [
        Expression(str(number), found.phrase, scene.regions[found.region].box, scene.image.size)
        for number, scene in enumerate(scenes)
        for found in referring_expressions(scene)
    ]


def ask_boxes(chat: Chat, scenes: list[Scene]) -> dict[str, Any]:
    """Ask for a box of every expression, as the dialogues do, and return the scores of `score_boxes`."""
    expressions = expressions_of(scenes)
    asked = [chat.prepare(scenes[int(one.image)].image, REFER_PROMPT + one.text) for one in expressions]
    return score_boxes(expressions, chat.answers(asked, BOX_TOKENS))
