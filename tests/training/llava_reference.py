"""Second implementation of LLaVA's way from a conversation to token ids and labels: the reference for our templates.

It follows llava/mm_utils.py and llava/train/train.py of LLaVA's commit c121f04.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import sentencepiece
from transformers import LlamaTokenizer

from pad_pipeline.training.template import IMAGE
from tests.training.dialogues import Turns

IGNORE = -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def llava_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of LLaVA's `tokenizer_image_token`: texts between marks are tokenized alone, and only the first
    keeps its BOS."""
    # LLaVA's slow tokenizer puts a space before every part; that of transformers 5 does not where there is one.
    quirk = isinstance(tokenizer, LlamaTokenizer)
    parts = [" " + part if quirk and part.startswith(" ") else part for part in text.split("<image>")]
    first, *others = [list(tokenizer(part).input_ids) for part in parts]
    bos = int(first[:1] == [tokenizer.bos_token_id])
    for other in others:
        first += [-200, *other[bos:]]
    return first


def llava_multimodal(turns: Turns) -> Turns:
    """Do what LLaVA's `preprocess_multimodal` does to samples with an image."""
    moved = []
    for turn in turns:
        value = turn["value"]
        if "<image>" in value:
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        moved.append({"from": turn["from"], "value": value})
    return moved


def llava_plain(turns: Turns, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids and labels of LLaVA's `preprocess_plain`."""
    asked, told = llava_multimodal(turns)
    assert "<image>" in asked["value"]
    ids = llava_ids("<image>" + told["value"] + "\n", tokenizer)
    masked = len(llava_ids("<image>", tokenizer))
    return ids, [IGNORE] * masked + ids[masked:]


def llava_v1(turns: Turns, image: bool, tokenizer: Any, legacy: bool) -> tuple[list[int], list[int] | None]:
    """Return the ids and labels of LLaVA's `preprocess_v1`; None where LLaVA finds a mismatch and drops the labels.

    LLaVA computes the answers' positions by tokenizing each round and each instruction alone. So a BOS stands for the
    `</s>` before a round, and the 2 that LLaVA subtracts are BOS and the space after "ASSISTANT:".
    """
    turns = llava_multimodal(turns) if image else turns
    turns = turns[1:] if turns[0]["from"] == "gpt" else turns
    prompt = SYSTEM + " "
    for number, turn in enumerate(turns):
        assert turn["from"] == ("human", "gpt")[number % 2]
        speaker = ("USER", "ASSISTANT")[number % 2]
        prompt += f"{speaker}: {turn['value']}{(' ', '</s>')[number % 2]}" if turn["value"] else f"{speaker}:"

    def length(text: str) -> int:
        return len(llava_ids(text, tokenizer) if image else tokenizer(text).input_ids)

    ids = llava_ids(prompt, tokenizer) if image else list(tokenizer(prompt).input_ids)
    labels, at = [IGNORE, *ids[1:]], 1
    for number, round_ in enumerate(prompt.split("</s>")):
        halves = round_.split(" ASSISTANT: ")
        if not round_ or len(halves) != 2:
            break
        less = int(number > 0 and not legacy)
        instruction = length(halves[0] + " ASSISTANT: ") - 2 - less
        labels[at : at + instruction] = [IGNORE] * instruction
        at += length(round_) - less
    labels[at:] = [IGNORE] * (len(ids) - at)
    # An image's place is no label: the model takes it out when the features come in.
    labels = [IGNORE if label == IMAGE else label for label in labels]
    return ids, labels if at == sum(token != tokenizer.pad_token_id for token in ids) else None


def flags(labels: Sequence[int]) -> list[bool]:
    return [label != IGNORE for label in labels]


class SlowLlama:
    """The tokenizer that LLaVA trained with: the slow one of transformers, around sentencepiece.

    After a special token a legacy tokenizer begins a new word, and the other kind continues the word.
    """

    bos_token_id, pad_token_id = 1, 0

    def __init__(self, model: bytes, legacy: bool) -> None:
        self.legacy = legacy
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __call__(self, text: str) -> SimpleNamespace:
        first, *others = text.split("</s>")
        ids = [1, *self.pieces.encode(first)]
        for other in others:
            ids += [2, *(self.pieces.encode(other) if self.legacy else self._going_on(other))]
        return SimpleNamespace(input_ids=ids)

    def _going_on(self, text: str) -> list[int]:
        """Return the ids of a text that continues a word, without the `▁` before it.

        The text is tokenized after a line break, which is a byte token and is joined to nothing.
        """
        prefix = self.pieces.encode("\n")
        assert self.pieces.id_to_piece(prefix) == ["▁", "<0x0A>"]
        return list(self.pieces.encode(f"\n{text}")[len(prefix) :])
