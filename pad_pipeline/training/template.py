"""A conversation -> token ids, and which of them the LLM is to learn: LLaVA's templates, and the LLM's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

IMAGE = -200
"""Stands among the token ids where the image goes; LLaVA's number for it."""
IMAGE_MARK = "<image>"
"""Stands in a text where the image goes."""

TemplateName = Literal["plain", "v1", "chat"]
"""`plain`: `BOS <image> caption "\\n"`, LLaVA's for stage 1; the question is dropped. `v1`: Vicuna's dialogue,
LLaVA-1.5's for stage 2. `chat`: the chat template that the LLM's tokenizer brings along (Llama 3, Qwen)."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""How Vicuna's dialogues begin."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")

Turns = Sequence[Mapping[str, str]]


class Encoded(NamedTuple):
    """A sequence."""

    ids: list[int]
    """Token ids, with `IMAGE` in the image's place."""
    supervised: list[bool]
    """Which of them the LLM learns to say."""

    def cut(self, length: int, image_tokens: int) -> Encoded:
        """The beginning that fits into `length` tokens once the image has `image_tokens`, as LLaVA cuts: after the
        image was put in. Nothing where the image does not fit: there is no half of one."""
        if IMAGE in self.ids:
            if self.ids.index(IMAGE) + image_tokens > length:
                return Encoded([], [])
            length -= image_tokens - 1
        return Encoded(self.ids[: max(length, 0)], self.supervised[: max(length, 0)])


class Template:
    """Turns conversations into sequences.

    Args:
        name: which template.
        tokenizer: the LLM's.

    Raises:
        ValueError: the tokenizer lacks what the template needs.
    """

    def __init__(self, name: TemplateName, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        if name != "plain" and not tokenizer.is_fast:
            raise ValueError(f"template {name} needs a fast tokenizer, one that tells where in the text a token stands")
        if name == "v1" and tokenizer.eos_token is None:
            raise ValueError("template v1 ends each answer with the EOS token, and the LLM's tokenizer has none")
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError("the LLM's tokenizer brings no chat template along; take template v1")
        # Not as the tokenizer does by itself: transformers 5 leaves LLaMA's out where its config does not ask for it.
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._added = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())

    def __call__(self, turns: Turns, image: bool) -> Encoded:
        """The sequence of a conversation.

        Args:
            turns: `{from, value}` each, `human` and `gpt` in turn.
            image: whether an image goes with it.

        Raises:
            ValueError: it does not fit the template; the text says why.
        """
        turns = _checked(turns, image)
        if self.name == "plain":
            if not image:
                raise ValueError("it has no image, and template plain is an image and its caption")
            if len(turns) > 2:
                raise ValueError(f"it has {len(turns) // 2} questions, and template plain takes one")
            return self.caption(turns[1]["value"])
        return self._v1(turns) if self.name == "v1" else self._chat(turns)

    def caption(self, text: str) -> Encoded:
        """`BOS <image> text "\\n"`; the newline is the only stop, there is no EOS. An image mark in `text` goes."""
        if IMAGE_MARK in text:
            text = text.replace(IMAGE_MARK, "").strip()
        ids = self._ids(text + "\n")
        before = [*self._bos, IMAGE]
        return Encoded(before + ids, [False] * len(before) + [True] * len(ids))

    def question(self, text: str) -> list[int]:
        """What the LLM is given to answer `text` about an image: what stands before the answer in training.

        Raises:
            ValueError: the LLM's chat template refuses it.
        """
        value = _marked(text)
        if self.name == "plain":
            return [*self._bos, IMAGE]
        if self.name == "v1":
            return self._pieces([(f"{SYSTEM} USER: {value} ASSISTANT:", False)], self._bos).ids
        asked = self._rendered([{"role": "user", "content": value}], add_generation_prompt=True)
        return self._pieces([(asked, False)], []).ids

    def _v1(self, turns: Turns) -> Encoded:
        pieces: list[tuple[str, bool]] = [(f"{SYSTEM} ", False)]
        for turn in turns:
            if turn["from"] in _HUMAN:
                pieces.append((f"USER: {turn['value']} ASSISTANT:", False))
            else:  # the space too: before a digit it is a token of its own, and LLaVA supervises that
                pieces.append((f" {turn['value']}{self.tokenizer.eos_token}", True))
        return self._pieces(pieces, self._bos)

    def _chat(self, turns: Turns) -> Encoded:
        """The answers, with the token that ends a turn, are what stands between the text that asks for an answer and
        the same text with it."""
        roles = [
            {"role": "user" if turn["from"] in _HUMAN else "assistant", "content": turn["value"]} for turn in turns
        ]
        whole = self._rendered(roles)
        if whole.count(IMAGE_MARK) != sum(role["content"].count(IMAGE_MARK) for role in roles):
            raise ValueError(f"the LLM's chat template drops or repeats the {IMAGE_MARK} mark")
        pieces, at = [], 0
        for number in range(1, len(roles), 2):
            asked = self._rendered(roles[:number], add_generation_prompt=True)
            said = self._rendered(roles[: number + 1])
            if said.rstrip().endswith(self._added):
                said = said.rstrip()  # a line break behind the token that ends the turn is not the LLM's to say
            if not whole.startswith(said):
                said = self._said_in(whole, asked, roles[number]["content"])
            if not (whole.startswith(asked) and whole.startswith(said) and at <= len(asked) < len(said)):
                raise ValueError("the LLM's chat template writes earlier turns otherwise once later ones follow")
            pieces += [(whole[at : len(asked)], False), (whole[len(asked) : len(said)], True)]
            at = len(said)
        encoded = self._pieces([*pieces, (whole[at:], False)], [])
        for end in list(accumulate(len(piece) for piece, _ in pieces))[::2]:
            asked_ids = self._pieces([(whole[:end], False)], []).ids
            if encoded.ids[: len(asked_ids)] != asked_ids:  # such a token can't be said once the question has been
                raise ValueError("the tokenizer joins an answer's beginning to the chat template's text before it")
        return encoded

    def _said_in(self, whole: str, asked: str, answer: str) -> str:
        """The text up to the token that ends an answer, where the template writes the answer otherwise as long as it is
        the last (Qwen 3 puts an empty thought before it); nothing where it is not there at all."""
        ends = "|".join(map(re.escape, self._added))
        found = re.compile(f"{re.escape(answer.strip())}\\s*({ends})").search(whole, len(asked))
        return whole[: found.end()] if found and self._added else ""

    def _rendered(self, roles: list[dict[str, str]], **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(roles, tokenize=False, **options))
        except Exception as error:  # a template is a program of its own
            raise ValueError(f"the LLM's chat template refuses it ({type(error).__name__}: {error})") from error

    def _pieces(self, pieces: Iterable[tuple[str, bool]], before: list[int]) -> Encoded:
        """The text as a whole, tokenized in one go between images as LLaVA does; a token that reaches into a
        supervised piece is supervised."""
        text, spans = "", []
        for piece, supervised in pieces:
            if supervised:
                spans.append((len(text), len(text) + len(piece)))
            text += piece
        ids, flags, at = list(before), [False] * len(before), 0
        for number, chunk in enumerate(text.split(IMAGE_MARK)):
            if number:
                ids.append(IMAGE)
                flags.append(False)
                at += len(IMAGE_MARK)
            encoded = self.tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            flags += [
                any(first < at + stop and at + start < last for first, last in spans)
                for start, stop in encoded["offset_mapping"]
            ]
            at += len(chunk)
        return Encoded(ids, flags)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _checked(turns: Turns, image: bool) -> list[dict[str, str]]:
    """Human and assistant in turn, the human first, and `<image>` where LLaVA puts it: before the question.

    Raises:
        ValueError: it is no such conversation.
    """
    if turns and turns[0]["from"] in _ASSISTANT:
        turns = turns[1:]  # as LLaVA does: an answer without a question
    for number, turn in enumerate(turns):
        if turn["from"] not in (_ASSISTANT if number % 2 else _HUMAN):
            raise ValueError(f"turn {number} is of {turn['from']!r}; human and gpt should speak in turn")
        if number % 2 and not turn["value"].replace(IMAGE_MARK, "").strip():
            raise ValueError(f"turn {number}, an answer, is empty")
    turns = turns[: len(turns) // 2 * 2]  # a last question without an answer
    if not turns:
        raise ValueError("it has no answer")
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks > 1:
        raise ValueError(f"it has {marks} {IMAGE_MARK} marks, and one image at most can be shown")
    if marks and not image:
        raise ValueError(f"it has an {IMAGE_MARK} mark and no image")
    checked = []
    for number, turn in enumerate(turns):
        mark = IMAGE_MARK in turn["value"] or (image and not marks and number == 0)
        checked.append({"from": turn["from"], "value": _marked(turn["value"]) if mark else turn["value"]})
    return checked


def _marked(text: str) -> str:
    """A turn's text with the image before it, as LLaVA has it wherever the mark stood."""
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
