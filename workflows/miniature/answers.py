"""What a trained multimodal model says of drawn scenes, and how much of it is true: captions by their slots, boxes by
their overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pad_pipeline.evaluation.boxes import Expression, score_boxes
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import REFER, caption, parses, refer
from pad_pipeline.miniature.world import COLOURS, SIZES, TEXTURES, Scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.training.template import IMAGE, IMAGE_MARK, Template, TemplateName

BATCH = 64
"""Questions that are answered at a time."""
CAPTION_TOKENS = 100
"""More than the longest caption has."""
BOX_TOKENS = 32
"""More than a box has: 21 and its end."""

# ---- asking


class Speaker:
    """A trained model that answers by the likeliest token each time.

    Args:
        folder: the `hf/` that a training wrote; its processor crops or pads as in the training.
        template: of the training.
    """

    def __init__(self, folder: Path, template: TemplateName) -> None:
        with quiet():
            self.llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
            self.processor = LlavaProcessor.from_pretrained(folder, backend="pil")
        self.tokenizer: Any = self.processor.tokenizer
        self.template = Template(template, self.tokenizer)
        newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
        # Template plain has no other stop than the end of the line.
        self.ends = [self.tokenizer.eos_token_id, *([newline] if template == "plain" else [])]

    def prompt(self, question: str) -> list[int]:
        """Token ids up to the answer, with as many image tokens as the image has patches."""
        ids = self.template.question(f"{IMAGE_MARK}\n{question}")
        position, count = ids.index(IMAGE), self.llava.config.image_seq_length
        return ids[:position] + [self.llava.config.image_token_id] * count + ids[position + 1 :]

    @torch.inference_mode()
    def answer(self, asked: list[tuple[Image.Image, str]], most: int) -> list[str]:
        """The answers, without their ends.

        Args:
            asked: image and question of each.
            most: tokens of an answer, at most.
        """
        prompts = [self.prompt(question) for _, question in asked]
        answers = [""] * len(asked)
        for positions in same_length(prompts, BATCH):
            images = [asked[position][0].convert("RGB") for position in positions]
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            ids = torch.tensor([prompts[position] for position in positions])
            said = self.llava.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=self.ends,
                pad_token_id=self.ends[0],
            )
            for position, row in zip(positions, said[:, ids.shape[1] :].tolist(), strict=True):
                end = next((at for at, token in enumerate(row) if token in self.ends), len(row))
                answers[position] = self.tokenizer.decode(row[:end]).strip()
        return answers


def same_length(prompts: list[list[int]], most: int) -> Iterable[list[int]]:
    """The places of prompts that have the same length, `most` at a time: what needs no padding gets none, and nothing
    can be wrong with it."""
    positions: dict[int, list[int]] = {}
    for position, prompt in enumerate(prompts):
        positions.setdefault(len(prompt), []).append(position)
    for group in positions.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


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
        """By the names of the comparison's table."""
        rates = {"caption_slots": self.share(), "caption_kinds": self.share("kind")}
        return rates | {"captions_that_parse": self.parsed / max(self.captions, 1)}

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


def score_captions(speaker: Speaker, scenes: list[Scene], question: str) -> CaptionScore:
    """Captions of scenes against their own; `question` is what asks for one in a dialogue."""
    score = CaptionScore()
    said = speaker.answer([(scene.image, question) for scene in scenes], CAPTION_TOKENS)
    for scene, text in zip(scenes, said, strict=True):
        score.add(text, caption(scene))
    return score


# ---- boxes


def expressions_of(scenes: list[Scene]) -> list[Expression]:
    """Every thing that an expression fits alone. `image` is the scene's number: it has no file."""
    return [
        Expression(str(number), found.phrase, scene.regions[found.region].box, scene.image.size)
        for number, scene in enumerate(scenes)
        for found in refer(scene)
    ]


def ask_boxes(speaker: Speaker, scenes: list[Scene]) -> dict[str, Any]:
    """The scores of `score_boxes`, asked for as in the dialogues, which say boxes of the padded square."""
    expressions = expressions_of(scenes)
    said = speaker.answer([(scenes[int(one.image)].image, REFER + one.text) for one in expressions], BOX_TOKENS)
    return score_boxes(expressions, said)
