"""Turn conversations into token ids by a template of LLaVA or of the LLM, and mark the ids that the LLM learns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

IMAGE = -200
"""The placeholder for the image among token ids; LLaVA uses the same number."""
IMAGE_MARK = "<image>"
"""The placeholder for the image in a text."""

TemplateName = Literal["plain", "v1", "chat"]
"""The templates. `plain`: `BOS <image> caption "\\n"`, without the question; LLaVA uses it in stage 1. `v1`: Vicuna's
dialogue; LLaVA-1.5 uses it in stage 2. `chat`: the chat template of the LLM's tokenizer (Llama 3, Qwen)."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The text at the beginning of Vicuna's dialogues."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")

Turns = Sequence[Mapping[str, str]]
"""A conversation: turns of `{from, value}`."""


class EncodedText(NamedTuple):
    """A conversation as token ids."""

    ids: list[int]
    """Token ids, with one `IMAGE` for the image."""
    supervised: list[bool]
    """For each token, whether the LLM learns to produce it."""

    def truncated(self, length: int, image_tokens: int) -> EncodedText:
        """Return the beginning that fits into `length` tokens. The image takes `image_tokens` of these tokens.

        LLaVA truncates in the same way. If the image does not fit as a whole, an empty text is returned.
        """
        if IMAGE in self.ids:
            if self.ids.index(IMAGE) + image_tokens > length:
                return EncodedText([], [])
            length -= image_tokens - 1
        return EncodedText(self.ids[: max(length, 0)], self.supervised[: max(length, 0)])


class Template:
    """Encodes conversations with the LLM's tokenizer.

    Raises:
        ValueError: the template can't be used with this tokenizer.
    """

    def __init__(self, name: TemplateName, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        if name != "plain" and not tokenizer.is_fast:
            raise ValueError(f"template {name} needs a fast tokenizer, which reports the position of each token")
        if name == "v1" and tokenizer.eos_token is None:
            raise ValueError("template v1 ends each answer with the EOS token, and the LLM's tokenizer has none")
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError("the LLM's tokenizer has no chat template; take template v1")
        self._added = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
        alone, spaced, line, after = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a", "\n", "\na")
        )
        self._drops_space = alone == spaced
        # `_guard` is put before a text that continues another one. A tokenizer that adds a space before every text then
        # adds it before the guard, and the guard never merges with the text.
        self._guard = "" if after == line + alone else "\n"
        self.bos = self._bos_tokens()
        """The ids that stand before a text: BOS, or nothing."""
        self.options: dict[str, Any] = {"enable_thinking": False}
        """Options of the LLM's chat template. Qwen 3's then asks with an empty thought; the LLM does not learn it."""
        if name == "chat" and not self._asks_as_trained():
            self.options = {}

    def __call__(self, turns: Turns, image: bool) -> EncodedText:
        """Encode a conversation in which `human` and `gpt` alternate. `image` says whether it has an image.

        Raises:
            ValueError: the conversation does not fit the template.
        """
        turns = _checked(turns, image)
        if self.name == "plain":
            if not image:
                raise ValueError("it has no image, and template plain needs one")
            if len(turns) > 2:
                raise ValueError(f"it has {len(turns) // 2} questions, and template plain takes one")
            return self.caption(turns[1]["value"])
        return self._v1(turns) if self.name == "v1" else self._chat(turns)

    def caption(self, text: str) -> EncodedText:
        """Encode a caption as `BOS <image> text "\\n"`, without EOS. Image marks in `text` are removed."""
        if IMAGE_MARK in text:
            text = text.replace(IMAGE_MARK, "").strip()
        ids = self._tokenize(text + "\n")[0]
        before = [*self.bos, IMAGE]
        return EncodedText(before + ids, [False] * len(before) + [True] * len(ids))

    def question(self, text: str) -> list[int]:
        """Return the token ids of a question about an image, up to the point at which the answer begins in training.

        Raises:
            ValueError: the LLM's chat template fails on the question.
        """
        value = _with_mark_first(text)
        if self.name == "plain":
            return [*self.bos, IMAGE]
        if self.name == "v1":
            return self._tokenize_pieces([(f"{SYSTEM} USER: {value} ASSISTANT:", False)], self.bos).ids
        asked = self._render([{"role": "user", "content": value}], add_generation_prompt=True)
        return self._tokenize_pieces([(asked, False)], []).ids

    def _v1(self, turns: Turns) -> EncodedText:
        """Encode a dialogue in Vicuna's format. The answers are supervised, each with its EOS."""
        pieces = [(f"{SYSTEM} ", False)]
        for turn in turns:
            if turn["from"] in _HUMAN:
                pieces.append((f"USER: {turn['value']} ASSISTANT:", False))
            else:  # LLaVA supervises the space before the answer too; the space before a digit is a separate token
                pieces.append((f" {turn['value']}{self.tokenizer.eos_token}", True))
        return self._tokenize_pieces(pieces, self.bos)

    def _chat(self, turns: Turns) -> EncodedText:
        """Encode a dialogue in the LLM's chat template. The answers are supervised, each with the token that ends it.

        To find an answer, the dialogue is rendered up to the question and up to the answer. The answer is the
        difference between the two texts.
        """
        roles = [{"role": ("user", "assistant")[n % 2], "content": turn["value"]} for n, turn in enumerate(turns)]
        whole = self._render(roles)
        if whole.count(IMAGE_MARK) != sum(role["content"].count(IMAGE_MARK) for role in roles):
            raise ValueError(f"the LLM's chat template drops or repeats the {IMAGE_MARK} mark")
        # Cut the text into pieces that are supervised (answers) and pieces that are not.
        pieces, at = [], 0
        for number in range(1, len(roles), 2):
            answer = roles[number]["content"]
            asked = self._asked_text(whole, roles[:number])
            answered = self._render(roles[: number + 1])
            if answered.rstrip().endswith(self._added):
                answered = answered.rstrip()  # the line break after the token that ends a turn is not supervised
            if not whole.startswith(answered):
                answered = self._answered_text(whole, asked, answer)
            if not (whole.startswith(asked) and whole.startswith(answered) and at <= len(asked) < len(answered)):
                raise ValueError("the LLM's chat template changes earlier turns when later ones follow")
            before, found, _ = whole[len(asked) : len(answered)].partition(answer.strip())
            if found and before.strip():
                rule = f"puts {before.strip()[:40]!r} before an answer and not before the place where it asks for one"
                raise ValueError(f"the LLM's chat template {rule}, so the LLM would learn to say it")
            pieces += [(whole[at : len(asked)], False), (whole[len(asked) : len(answered)], True)]
            at = len(answered)
        return self._tokenize_pieces([*pieces, (whole[at:], False)], [])

    def _bos_tokens(self) -> list[int]:
        """Return BOS if the tokenizer puts it before a text, or should.

        transformers 5 omits the BOS of a SentencePiece tokenizer (LLaMA's) if the tokenizer's config does not say
        `add_bos_token`. Some byte-level tokenizers deliberately add no BOS (Phi 4, SmolLM 2): their BOS is also EOS, or
        begins each turn.
        """
        bos = self.tokenizer.bos_token_id
        puts = bos in list(self.tokenizer("a")["input_ids"])[:1]
        forgets = self._guard and self.tokenizer.init_kwargs.get("add_bos_token") is None
        return [bos] if bos is not None and (puts or forgets) else []

    def _asks_as_trained(self) -> bool:
        """Return whether a dialogue begins with the text that asks for its first answer, rendered with the options."""
        roles = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
        return self._render(roles).startswith(self._render(roles[:1], add_generation_prompt=True))

    def _asked_text(self, whole: str, roles: list[dict[str, str]]) -> str:
        """Return the text of a dialogue up to an answer. `roles` are the messages before it.

        For the last answer, this text ends in Qwen 3's empty thought. Earlier answers have none, so it is rendered
        again with thinking on.
        """
        asked = self._render(roles, add_generation_prompt=True)
        if whole.startswith(asked) or not self.options:
            return asked
        return self._render(roles, add_generation_prompt=True, enable_thinking=True)

    def _answered_text(self, whole: str, asked: str, answer: str) -> str:
        """Return the dialogue's text up to the token that ends `answer`; "" if there is no such token.

        Some templates format the last answer differently: Qwen 3 puts an empty thought before it.
        """
        ends = "|".join(map(re.escape, self._added))
        match = re.compile(f"{re.escape(answer.strip())}\\s*({ends})").search(whole, len(asked))
        return whole[: match.end()] if match and self._added else ""

    def _render(self, roles: list[dict[str, str]], **options: Any) -> str:
        """Render messages with the LLM's chat template. Raise a ValueError if it fails."""
        try:
            return str(self.tokenizer.apply_chat_template(roles, tokenize=False, **(self.options | options)))
        except Exception as error:  # a chat template is a program and can raise anything
            raise ValueError(f"the LLM's chat template fails on it ({type(error).__name__}: {error})") from error

    def _tokenize(self, text: str, continued: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and the range of characters that each of them stands for.

        SentencePiece puts a space before a text. The LlamaTokenizer of transformers omits this space if the text begins
        with one; LLaVA's tokenizer does not, so it is added here. A text is `continued` if it follows other text, and
        then no space is put before it.

        Raises:
            ValueError: the tokenizer can't tokenize a continuation.
        """
        space = " " if self._drops_space and text[:1] in (" ", "▁") else ""
        before, fast = self._guard if continued else space, self.tokenizer.is_fast
        encoded = self.tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=fast)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"] if fast else []
        if continued and before:
            first = self.tokenizer(before, add_special_tokens=False)["input_ids"]
            if ids[: len(first)] != first:
                raise ValueError("the tokenizer joins the start of an answer and the text before it")
            ids, offsets = ids[len(first) :], offsets[len(first) :]
        return ids, [(max(start - len(before), 0), max(stop - len(before), 0)) for start, stop in offsets]

    def _tokenize_pieces(self, pieces: Iterable[tuple[str, bool]], before: list[int]) -> EncodedText:
        """Tokenize a text of pieces, each of them supervised or not, and put the token ids `before` in front.

        As in LLaVA, the text between two image marks is tokenized at once; but what stands before an answer is
        tokenized by itself, because the LLM is given its tokens and then produces the answer's. A token is supervised
        if any part of it lies in a supervised piece.
        """
        parts: list[tuple[str, int]] = []
        """Texts that are tokenized separately, each with the number of supervised characters at its start."""
        for piece, supervised in pieces:
            if supervised or not parts:
                parts.append((piece, len(piece) * supervised))
            else:
                parts[-1] = (parts[-1][0] + piece, parts[-1][1])
        ids, flags = list(before), [False] * len(before)
        for position, (text, answer) in enumerate(parts):
            at = 0
            for number, chunk in enumerate(text.split(IMAGE_MARK)):
                if number:
                    ids.append(IMAGE)
                    flags.append(False)
                    at += len(IMAGE_MARK)
                new, offsets = self._tokenize(chunk, continued=bool(position and not number))
                ids += new
                flags += [at + start < answer for start, _ in offsets]
                at += len(chunk)
        return EncodedText(ids, flags)


def _checked(turns: Turns, image: bool) -> list[dict[str, str]]:
    """Return the turns from the first question to the last answer, with the image mark at the start of its turn.

    Raises:
        ValueError: a turn, an answer or the number of image marks is wrong.
    """
    if turns and turns[0]["from"] in _ASSISTANT:
        turns = turns[1:]  # an answer without a question is dropped, as in LLaVA
    for number, turn in enumerate(turns):
        if turn["from"] not in (_ASSISTANT if number % 2 else _HUMAN):
            raise ValueError(f"turn {number} is of {turn['from']!r}; human and gpt should alternate")
        if number % 2 and not turn["value"].replace(IMAGE_MARK, "").strip():
            raise ValueError(f"turn {number}, an answer, is empty")
    turns = turns[: len(turns) // 2 * 2]  # a last question without an answer is dropped
    if not turns:
        raise ValueError("it has no answer")
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks > 1:
        raise ValueError(f"it has {marks} {IMAGE_MARK} marks, and one is the most")
    if marks and not image:
        raise ValueError(f"it has an {IMAGE_MARK} mark and no image")
    checked = []
    for number, turn in enumerate(turns):
        mark = IMAGE_MARK in turn["value"] or (image and not marks and number == 0)
        checked.append({"from": turn["from"], "value": _with_mark_first(turn["value"]) if mark else turn["value"]})
    return checked


def _with_mark_first(text: str) -> str:
    """Move the image mark to the front of a turn's text, as LLaVA does."""
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
