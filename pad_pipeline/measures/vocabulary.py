"""The tokens of an LLM as words: which tokens are whole words, and which belong to a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

WordFilter = Literal["all", "whole", "labels"]
"""Which tokens of the LLM are compared with a vision token.

`all`: all except special tokens. `whole`: tokens that are whole words. `labels`: tokens of the shards' labels.
"""
_STARTS = ("▁", "Ġ")
"""The characters for the space before a word in SentencePiece and in byte-level BPE."""
ROWS = 1024
"""How many tokens are compared with all words at once; the cosines take 130 MB for 32,000 words."""


def nearest_word(tokens: Tensor, words: Tensor) -> Tensor:
    """Return the nearest of the words `[V, d]`, of length 1, to each token `[M, d]` by cosine: indices, int64 `[M]`."""
    return torch.cat([(F.normalize(rows.float(), dim=-1) @ words.mT).argmax(-1) for rows in torch.split(tokens, ROWS)])


class Vocabulary:
    """The tokens of an LLM as words, and the tokens of a run's labels.

    Args:
        tokenizer: the tokenizer of the LLM.
        count: the number of input embeddings of the LLM; tokens without an embedding are ignored.
        labels: the token ids of each label.
    """

    def __init__(self, tokenizer: Any, count: int, labels: Mapping[str, list[int]]) -> None:
        count = min(count, len(tokenizer))
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(count))]
        # The tokenizer joins the text, because byte-level BPE spells tokens in bytes.
        texts = [tokenizer.convert_tokens_to_string([token]).strip().lower() for token in tokens]
        self.words = [text or token for text, token in zip(texts, tokens, strict=True)]
        """The text of each token in lower case, without the space before it."""
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        whole = [
            token.startswith(_STARTS) and word.isalpha() and len(word) > 1
            for token, word in zip(tokens, self.words, strict=True)
        ]
        self.ordinary = torch.tensor([number not in special for number in range(count)])
        """bool `[V]`: false for special tokens."""
        self.readable = torch.tensor(whole) & self.ordinary
        """bool `[V]`: whether a token is a whole word: a space, then two letters or more."""
        numbers = {word: number for number, word in enumerate(dict.fromkeys(self.words))}
        self._word = torch.tensor([numbers[word] for word in self.words])
        self._ids = {label: sorted({*ids}) for label, ids in labels.items()}

    def token_ids(self, which: WordFilter) -> Tensor:
        """Return the token ids that a filter allows, int64 `[n]`."""
        if which == "labels":
            return torch.tensor(sorted({token for ids in self._ids.values() for token in ids}))
        return (self.readable if which == "whole" else self.ordinary).nonzero()[:, 0]

    def in_label(self, tokens: Tensor, label: str) -> Tensor:
        """Return whether each token is one of a label's, bool of the shape of `tokens`, ignoring case and spaces."""
        return torch.isin(self._word[tokens], self._word[self._ids[label]])
