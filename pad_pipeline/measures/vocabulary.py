"""The LLM's tokens as words: which can be read, and which of them a label consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

WordFilter = Literal["all", "whole", "labels"]
"""Which tokens a vision token may be explained by: `all` but special ones; `whole`: those that are a word by
themselves; `labels`: those that some label of the shards consists of."""
_STARTS = ("▁", "Ġ")
"""What stands in a token for the space before it, in SentencePiece and in byte-level BPE."""


ROWS = 1024
"""Tokens that are compared with all words at a time: 130 MB of cosines for 32,000 words."""


def nearest_word(tokens: Tensor, words: Tensor) -> Tensor:
    """int64 `[M]`: of words of length 1 `[V, d]` the one with the highest cosine to each token of `[M, d]`."""
    return torch.cat([(F.normalize(rows.float(), dim=-1) @ words.mT).argmax(-1) for rows in tokens.split(ROWS)])


def _text(tokenizer: Any, token: str) -> str:
    """What a token says. Byte-level BPE writes it in letters that stand for bytes, and the bytes of a token may be a
    part of a letter, which is none."""
    return str(tokenizer.convert_tokens_to_string([token])).strip()


class Vocabulary:
    """The tokens of an LLM.

    Args:
        tokenizer: the LLM's.
        count: how many of them there are embeddings for.
        labels: of the shards, with the tokens that each consists of.
    """

    def __init__(self, tokenizer: Any, count: int, labels: Mapping[str, list[int]]) -> None:
        count = min(count, len(tokenizer))
        self.tokens: list[str] = tokenizer.convert_ids_to_tokens(range(count))
        self.words = [_text(tokenizer, token or "").lower() or (token or "") for token in self.tokens]
        """As they are compared: without the space before them, in lower case."""
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        whole = [
            (token or "").startswith(_STARTS) and word.isalpha() and len(word) > 1
            for token, word in zip(self.tokens, self.words, strict=True)
        ]
        self.ordinary = torch.tensor([number not in special for number in range(len(self.tokens))])
        """bool `[V]`: no special token."""
        self.readable = torch.tensor(whole) & self.ordinary
        """bool `[V]`: a word by itself, two letters or more with a space before them."""
        numbers = {word: number for number, word in enumerate(dict.fromkeys(self.words))}
        self._word = torch.tensor([numbers[word] for word in self.words])
        self._ids = {label: sorted({*ids}) for label, ids in labels.items()}

    def of_label(self, label: str) -> list[int]:
        """The tokens that a label consists of, each once."""
        return self._ids[label]

    def atoms(self, which: WordFilter) -> Tensor:
        """int64, the tokens that a filter leaves."""
        if which == "labels":
            return torch.tensor(sorted({token for ids in self._ids.values() for token in ids}))
        return (self.readable if which == "whole" else self.ordinary).nonzero()[:, 0]

    def said(self, tokens: Tensor, label: str) -> Tensor:
        """bool, as `tokens`: whether each, in whatever case and with or without a space, is one that the label has."""
        return torch.isin(self._word[tokens], self._word[self.of_label(label)])
