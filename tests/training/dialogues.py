"""Draw dialogues from awkward questions and answers, and recover the text that an encoded dialogue teaches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tokenizers import decoders

from pad_pipeline.training.template import IMAGE_MARK, EncodedText

QUESTIONS = (
    "What is in the picture?", "how many?", "Is this a red house or a blue ball? Answer with one word.", "5 + 5 =",
    "这是什么？", "Why\nis that?\n", " And the dog? ", "?", "Describe it: color, size; then \"quote\" it.", "🙂?",
)  # fmt: skip
ANSWERS = (
    "A red house on the grass.", "5", "12 dogs.", "3.14", "0", "...", "(yes)", ".", '"Quoted", it said.', "'tis",
    "\nA line below.", "one\ntwo\n\nthree", "🙂", "\r\n2", "non\u00a0breaking", "é and e\u0301",
    "👩‍👩‍👧 a family 🙂", "你好", "二只狗。", " led by a space", "  two spaces",
    "ends in a space ", "ends in a line break\n", "ends in both \n ", "\ttab", "a", "No", ":", "\u3000wide",
    "<b>bold</b>", "</", "[0.12, 0.34, 0.56, 0.78]", "{{ braces }}", "USER", "ASSISTANT:", "مرحبا",
    "A house, a tree, and 17 dogs on the grass. " * 30 + "End",
)  # fmt: skip
Turns = list[dict[str, str]]


def talk(*values: str) -> Turns:
    """Return alternate turns of a human and the assistant."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def place_mark(text: str, place: int) -> str:
    """Put the image mark at the start, at the end, in the middle, or in place of the text."""
    words = text.split(" ")
    middle = len(words) // 2
    between = " ".join([*words[:middle], IMAGE_MARK, *words[middle:]])
    return (f"{IMAGE_MARK}\n{text}", f"{text}\n{IMAGE_MARK}", between, IMAGE_MARK + text, IMAGE_MARK)[place]


def dialogues(count: int, seed: int, answers: Sequence[str] = ANSWERS) -> list[tuple[Turns, bool]]:
    """Yield dialogues of 1 to 5 rounds, each with whether an image goes with it. All answers occur."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        rounds = draw.randint(1, 5)
        said = [draw.choice(answers) for _ in range(rounds)]
        said[0] = answers[number % len(answers)]
        values = [value for answer in said for value in (draw.choice(QUESTIONS), answer)]
        image = number % 4 != 0
        if image:
            asked = 0 if number % 8 else 2 * draw.randrange(rounds)
            values[asked] = place_mark(values[asked], draw.randrange(5))
        made.append((talk(*values), image))
    return made


def answers_of(turns: Turns) -> list[str]:
    return [turn["value"] for turn in turns[1::2]]


def taught(tokenizer: Any, encoded: EncodedText) -> list[str]:
    """Return the text of each unbroken series of supervised tokens."""
    runs: list[list[int]] = []
    for number, (token, supervised) in enumerate(zip(encoded.ids, encoded.supervised, strict=True)):
        if supervised and (number == 0 or not encoded.supervised[number - 1]):
            runs.append([])
        if supervised:
            runs[-1].append(token)
    return [spelled(tokenizer, run) for run in runs]


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the exact text of tokens; `decode` of a LLaMA type would drop a leading space."""
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.Sequence):
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    found = b""
    for name in tokenizer.convert_ids_to_tokens(ids):
        byte = name.startswith("<0x") and len(name) == 6
        found += bytes([int(name[3:5], 16)]) if byte else name.replace("▁", " ").encode()
    return found.decode()
