"""Scores the captions and boxes that a multimodal model gives for drawn scenes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pad_pipeline.evaluation.boxes import Expression, score_boxes
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import REFER_PROMPT, caption, is_caption, questions, referring_expressions
from pad_pipeline.miniature.world import COLORS, SIZES, TEXTURES, Scene
from pad_pipeline.training.chat import Chat

CAPTION_TOKENS, BOX_TOKENS, ANSWER_TOKENS = 100, 32, 40
"""The most tokens of an answer. The longest caption has fewer than 100, a box has 22, and another answer under 40."""
QUESTIONS = {
    "ground": "Where is this", "where": "Where is the", "color": "What col", "count": "How many",
    "presence": "Is there", "parts": "Which parts",
}  # fmt: skip
"""How the questions of the world begin, by their kinds."""


class Said(NamedTuple):
    """The words that a caption uses for a thing; "" if a word is missing."""

    kind: str
    color: str
    size: str
    texture: str


class Slots(NamedTuple):
    """The parts of a caption that can be right or wrong."""

    ground: str
    position: str
    """`under the sky`, `at night`, `in front of the wall`."""
    things: list[Said]


_GROUND = re.compile(r"the (\w+) (under the sky|at night|in front of the wall)")
_THING = re.compile(
    rf"\ban? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?(?:({'|'.join(TEXTURES)}) )?({'|'.join(THINGS)})\b"
)


def slots_of(text: str) -> Slots | None:
    """Return the slots of a caption, or None if it is no sentence of the world's grammar."""
    if not is_caption(text):
        return None
    ground = _GROUND.search(text)
    assert ground, text
    things = [Said(kind, color, size, texture) for size, color, texture, kind in _THING.findall(text)]
    return Slots(ground[1], ground[2], things)


@dataclass
class CaptionScore:
    """Counts of captions, slots and right slots."""

    captions: int = 0
    parsed: int = 0
    """Captions that are sentences of the world's grammar."""
    right: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)

    def share(self, *names: str) -> float:
        """Return the share of right slots, among the slots of these names; without a name, among all slots."""
        chosen = names or tuple(self.slots)
        return sum(self.right[name] for name in chosen) / max(sum(self.slots[name] for name in chosen), 1)

    def rates(self) -> dict[str, float]:
        """Return the share of right slots, of right kinds, and of captions that are sentences."""
        parse = self.parsed / max(self.captions, 1)
        return {"slots": self.share(), "kinds": self.share("kind"), "parse": parse}

    def add(self, text: str, truth: str) -> None:
        """Score the caption `text` against the true caption.

        The slots are ground, position, and the kind, color, size and texture of each thing, as far as `truth` or `text`
        has them. So missing and invented words count as wrong. The most similar things are compared, in any order. A
        caption that is no sentence of the grammar has no right slot.
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
    """Return pairs of things, the most similar first. A missing or invented thing is paired with `_NOTHING`."""
    positions = [(a, b) for a in range(len(true)) for b in range(len(said))]
    positions.sort(key=lambda pair: -_common(true[pair[0]], said[pair[1]]))
    left, free, pairs = dict(enumerate(true)), dict(enumerate(said)), []
    for a, b in positions:
        if a in left and b in free:
            pairs.append((left.pop(a), free.pop(b)))
    return pairs + [(thing, _NOTHING) for thing in left.values()] + [(_NOTHING, thing) for thing in free.values()]


def _common(a: Said, b: Said) -> int:
    words = sum(x == y != "" for x, y in zip(a, b, strict=True))
    return words + 4 * (a.kind == b.kind)  # the kind counts more than all other words


def score_captions(chat: Chat, scenes: list[Scene], question: str) -> CaptionScore:
    """Score the captions that a model gives for scenes.

    `question` asks for a caption. It is empty for a model of template `plain`, which continues an image with a caption.
    """
    score = CaptionScore()
    asked = [chat.prepare(scene.image, question) if question else chat.prepare_caption(scene.image) for scene in scenes]
    said = chat.answers(asked, CAPTION_TOKENS, one_line=not question)
    for scene, text in zip(scenes, said, strict=True):
        score.add(text, caption(scene))
    return score


def expressions_of(scenes: list[Scene]) -> list[Expression]:
    """Return a referring expression for every thing that has an unambiguous one. Its `image` is the scene's number."""
    return [
        Expression(str(number), found.phrase, scene.regions[found.region].box, scene.image.size)
        for number, scene in enumerate(scenes)
        for found in referring_expressions(scene)
    ]


def ask_boxes(chat: Chat, scenes: list[Scene]) -> dict[str, Any]:
    """Ask a model for the box of every referring expression, and return the scores of `score_boxes`."""
    expressions = expressions_of(scenes)
    inputs = [chat.prepare(scenes[int(asked.image)].image, REFER_PROMPT + asked.text) for asked in expressions]
    return score_boxes(expressions, chat.answers(inputs, BOX_TOKENS))


def ask_questions(chat: Chat, scenes: list[Scene]) -> dict[str, float]:
    """Ask a model the world's questions about scenes. Return the share of answers that are right to the letter, for
    each kind of `QUESTIONS`, and for all questions together as `all`."""
    asked = [
        (kind, scene, question, answer)
        for number, scene in enumerate(scenes)
        for question, answer in questions(scene, np.random.default_rng(number))
        for kind, begin in QUESTIONS.items()
        if question.startswith(begin)
    ]
    said = chat.answers([chat.prepare(scene.image, question) for _, scene, question, _ in asked], ANSWER_TOKENS)
    right: dict[str, list[bool]] = {kind: [] for kind in (*QUESTIONS, "all")}
    for (kind, _, _, answer), text in zip(asked, said, strict=True):
        right[kind].append(text.strip() == answer)
        right["all"].append(right[kind][-1])
    return {kind: sum(found) / max(len(found), 1) for kind, found in right.items()}
