"""Turn conversations into token ids, and mark the ids that the LLM learns: LLaVA's templates, and the LLM's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

IMAGE = -200
"""Number that stands for the image among token ids; LLaVA uses the same one."""
IMAGE_MARK = "<image>"
"""Mark that stands for the image in a text."""

TemplateName = Literal["plain", "v1", "chat"]
"""Names of the templates. `plain`: `BOS <image> caption "\\n"`, LLaVA's for stage 1; the question is dropped. `v1`:
Vicuna's dialogue, LLaVA-1.5's for stage 2. `chat`: the chat template in the LLM's tokenizer (Llama 3, Qwen)."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Text with which Vicuna's dialogues begin."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")

Turns = Sequence[Mapping[str, str]]
"""A conversation: turns of `{from, value}`."""


class Encoded(NamedTuple):
    """A sequence of token ids, some of which are supervised."""

    ids: list[int]
    """Token ids, with `IMAGE` in the image's place."""
    supervised: list[bool]
    """Whether the LLM learns to say each token."""

    def cut(self, length: int, image_tokens: int) -> Encoded:
        """Return the beginning that fits into `length` tokens, where the image takes `image_tokens`.

        LLaVA cuts the same way, after it inserted the image's tokens. Where not all of the image's tokens fit, nothing
        is returned, because a part of an image is of no use.
        """
        if IMAGE in self.ids:
            if self.ids.index(IMAGE) + image_tokens > length:
                return Encoded([], [])
            length -= image_tokens - 1
        return Encoded(self.ids[: max(length, 0)], self.supervised[: max(length, 0)])


class Template:
    """Turns conversations into sequences of token ids of the LLM's tokenizer.

    Raises:
        ValueError: the tokenizer lacks what the template needs.
    """

    def __init__(self, name: TemplateName, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        if name != "plain" and not tokenizer.is_fast:
            raise ValueError(f"template {name} needs a fast tokenizer, which reports where in the text a token stands")
        if name == "v1" and tokenizer.eos_token is None:
            raise ValueError("template v1 ends each answer with the EOS token, and the LLM's tokenizer has none")
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError("the LLM's tokenizer brings no chat template along; take template v1")
        # Added here, because transformers 5 leaves LLaMA's BOS out where the tokenizer's config does not ask for it.
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._added = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())

    def __call__(self, turns: Turns, image: bool) -> Encoded:
        """Encode a conversation of `human` and `gpt` alternately, with an image or without.

        Raises:
            ValueError: the conversation does not fit the template; the message says why.
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
        """Encode a caption as `BOS <image> text "\\n"`.

        The newline is the only stop; there is no EOS. Image marks in `text` are removed.
        """
        if IMAGE_MARK in text:
            text = text.replace(IMAGE_MARK, "").strip()
        ids = list(self.tokenizer(text + "\n", add_special_tokens=False)["input_ids"])
        before = [*self._bos, IMAGE]
        return Encoded(before + ids, [False] * len(before) + [True] * len(ids))

    def question(self, text: str) -> list[int]:
        """Return the token ids that stand in training before the answer to question `text` about an image.

        Raises:
            ValueError: the LLM's chat template refuses the question.
        """
        value = _marked(text)
        if self.name == "plain":
            return [*self._bos, IMAGE]
        if self.name == "v1":
            return self._pieces([(f"{SYSTEM} USER: {value} ASSISTANT:", False)], self._bos).ids
        asked = self._rendered([{"role": "user", "content": value}], add_generation_prompt=True)
        return self._pieces([(asked, False)], []).ids

    def _v1(self, turns: Turns) -> Encoded:
        """Encode a dialogue in Vicuna's form. The answers, each with its EOS, are supervised."""
        pieces = [(f"{SYSTEM} ", False)]
        for turn in turns:
            if turn["from"] in _HUMAN:
                pieces.append((f"USER: {turn['value']} ASSISTANT:", False))
            else:  # with the space before the answer: before a digit it is a token, which LLaVA supervises
                pieces.append((f" {turn['value']}{self.tokenizer.eos_token}", True))
        return self._pieces(pieces, self._bos)

    def _chat(self, turns: Turns) -> Encoded:
        """Encode a dialogue in the LLM's chat template. The answers, each with the token that ends it, are supervised.

        To find them, the dialogue is rendered once up to each question and once up to its answer; the answer is the
        difference between the two texts.
        """
        roles = [{"role": ("user", "assistant")[n % 2], "content": turn["value"]} for n, turn in enumerate(turns)]
        whole = self._rendered(roles)
        if whole.count(IMAGE_MARK) != sum(role["content"].count(IMAGE_MARK) for role in roles):
            raise ValueError(f"the LLM's chat template drops or repeats the {IMAGE_MARK} mark")
        # Cut the text into pieces that are supervised (answers) and pieces that are not.
        pieces, at = [], 0
        for number in range(1, len(roles), 2):
            asked = self._rendered(roles[:number], add_generation_prompt=True)
            answered = self._rendered(roles[: number + 1])
            if answered.rstrip().endswith(self._added):
                answered = answered.rstrip()  # the LLM need not say the line break after the token that ends a turn
            if not whole.startswith(answered):
                answered = self._answered_text(whole, asked, roles[number]["content"])
            if not (whole.startswith(asked) and whole.startswith(answered) and at <= len(asked) < len(answered)):
                raise ValueError("the LLM's chat template writes earlier turns otherwise once later ones follow")
            pieces += [(whole[at : len(asked)], False), (whole[len(asked) : len(answered)], True)]
            at = len(answered)
        encoded = self._pieces([*pieces, (whole[at:], False)], [])
        # Refuse a token that reaches from a question into its answer: the LLM could not say it after the question.
        for end in list(accumulate(len(piece) for piece, _ in pieces))[::2]:
            asked_ids = self._pieces([(whole[:end], False)], []).ids
            if encoded.ids[: len(asked_ids)] != asked_ids:
                raise ValueError("the tokenizer joins an answer's beginning to the chat template's text before it")
        return encoded

    def _answered_text(self, whole: str, asked: str, answer: str) -> str:
        """Return the text of the whole dialogue up to the token that ends `answer`; "" where it is not found. Some
        templates write the last answer in another way than earlier ones: Qwen 3 puts an empty thought before it."""
        ends = "|".join(map(re.escape, self._added))
        match = re.compile(f"{re.escape(answer.strip())}\\s*({ends})").search(whole, len(asked))
        return whole[: match.end()] if match and self._added else ""

    def _rendered(self, roles: list[dict[str, str]], **options: Any) -> str:
        """Render messages with the LLM's chat template; a ValueError says why it refuses them."""
        try:
            return str(self.tokenizer.apply_chat_template(roles, tokenize=False, **options))
        except Exception as error:  # a chat template is a program and can raise anything
            raise ValueError(f"the LLM's chat template refuses it ({type(error).__name__}: {error})") from error

    def _pieces(self, pieces: Iterable[tuple[str, bool]], before: list[int]) -> Encoded:
        """Tokenize a text that is given in pieces, each with the flag whether it is supervised.

        As in LLaVA, the text between two images is tokenized in one go. A token that reaches into a supervised piece is
        supervised. The token ids `before` are put in front.
        """
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


def _checked(turns: Turns, image: bool) -> list[dict[str, str]]:
    """Return the turns from the human's first to the assistant's last, with the image mark in LLaVA's place, the
    beginning of its turn. A ValueError says why turns, answers or image marks do not fit."""
    if turns and turns[0]["from"] in _ASSISTANT:
        turns = turns[1:]  # an answer without a question is dropped, as in LLaVA
    for number, turn in enumerate(turns):
        if turn["from"] not in (_ASSISTANT if number % 2 else _HUMAN):
            raise ValueError(f"turn {number} is of {turn['from']!r}; human and gpt should speak in turn")
        if number % 2 and not turn["value"].replace(IMAGE_MARK, "").strip():
            raise ValueError(f"turn {number}, an answer, is empty")
    turns = turns[: len(turns) // 2 * 2]  # a last question without an answer is dropped
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
    """Return a turn's text with the image mark in front, where LLaVA puts it wherever it stood before."""
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
