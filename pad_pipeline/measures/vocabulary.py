"""The tokens of an LLM as words: which tokens can be read as words, and which belong to a label."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

WordFilter = Literal["all", "whole", "labels"]
"""Which tokens of the LLM are compared with a vision token.

`all`: all except special tokens. `whole`: tokens that are readable words (`is_word`). `labels`: tokens of the shards'
labels.
"""
_PARTIAL = "\ufffd"
"""The character that a decoder writes for bytes that are no whole character."""
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR")
"""The scripts without spaces between words, as Unicode's names of their letters begin."""
_WORD_IN_ONE = ("CJK", "HANGUL SYLLABLE")
"""The scripts in which a single character is often a word."""


def is_word(text: str) -> bool:
    """Return whether the text of a token, with the space before it if it has one, is a readable word.

    A word consists of letters of any script and of the marks that belong to letters (Unicode's categories L and M). It
    begins with a letter. It has two characters or more, or one Chinese character or Korean syllable. A space must stand
    before it, which distinguishes " dog" from the end of "hotdog". Only Chinese, Japanese, Thai, Lao, Khmer and Burmese
    need none, because they put no space between words. So whitespace, control characters, incomplete bytes,
    punctuation, digits and later parts of words are no words. No dictionary is asked: " qu" is a word here.
    """
    word = text.removeprefix(" ")
    if not word[:1].isalpha() or not (word.isalpha() or all(unicodedata.category(sign)[0] in "LM" for sign in word)):
        return False
    if word.isascii():
        return len(word) > 1 and word != text
    names = [unicodedata.name(sign, "") for sign in word]
    if word == text and not all(name.startswith(_UNSPACED) for name in names):
        return False
    return len(word) > 1 or names[0].startswith(_WORD_IN_ONE)


def token_texts(tokenizer: Any, count: int) -> list[str]:
    """Return the texts of the first `count` tokens, each with the space that it puts between itself and a word before
    it. Bytes that are no whole character read as U+FFFD."""

    def decode(ids: list[list[int]]) -> list[str]:
        texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return texts

    # Each token is decoded behind a word, because decoders drop the space at the start of a text. The word has two
    # letters, because a decoder may join a token for one byte with the next.
    alone = decode([[number] for number in range(count)])
    words = (number for number, text in enumerate(alone) if text.isascii() and text.strip().isalpha() and text[2:])
    if (first := next(words, None)) is None:
        return alone
    return [text.removeprefix(alone[first]) for text in decode([[first, number] for number in range(count)])]


def beyond_chance(share: float, chance: float) -> float:
    """Return the part of what chance leaves that a share reaches, as Cohen's kappa does: 0 by chance, 1 at most.

    NaN if chance alone reaches 1.
    """
    return (share - chance) / (1 - chance) if chance < 1 else math.nan


class Vocabulary:
    """The tokens of an LLM as words, and the tokens of a run's labels.

    Args:
        tokenizer: the tokenizer of the LLM.
        count: the number of input embeddings of the LLM; tokens without an embedding are ignored.
        labels: the token ids of each label.
    """

    def __init__(self, tokenizer: Any, count: int, labels: Mapping[str, list[int]]) -> None:
        texts = token_texts(tokenizer, min(count, len(tokenizer)))
        bare = [text.strip().lower() for text in texts]
        self.words = [
            word if word and word.isprintable() else repr(text) for word, text in zip(bare, texts, strict=True)
        ]
        """The text of each token in lower case without spaces around it; whitespace and control characters in quotes,
        as Python writes them."""
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self.ordinary = torch.tensor([number not in special for number in range(len(texts))])
        """bool `[V]`: false for special tokens."""
        self.readable = torch.tensor([is_word(text) for text in texts]) & self.ordinary
        """bool `[V]`: whether a token is a readable word, see `is_word`."""
        numbers = {word: number for number, word in enumerate(dict.fromkeys(self.words))}
        self._word = torch.tensor([numbers[word] for word in self.words])
        # Whitespace, punctuation and incomplete bytes say nothing, even if a label has them.
        self._speaks = torch.tensor([_PARTIAL not in text and any(map(str.isalnum, text)) for text in texts])
        self._ids = {label: sorted({*ids}) for label, ids in labels.items()}

    def token_ids(self, which: WordFilter) -> Tensor:
        """Return the token ids that a filter allows, int64 `[n]`, sorted."""
        if which == "labels":
            return torch.tensor(sorted({token for ids in self._ids.values() for token in ids}))
        return (self.readable if which == "whole" else self.ordinary).nonzero()[:, 0]

    def readable_by_chance(self, ids: Tensor) -> float:
        """Return the share of these tokens that is readable: what a blind choice among them reaches on average."""
        return float(self.readable[ids].double().mean())

    def in_label(self, tokens: Tensor, label: str) -> Tensor:
        """Return whether each token is one of a label's, bool of the shape of `tokens`, ignoring case and spaces.

        Tokens without a letter or digit, and bytes that are no whole character, never are.
        """
        return self._speaks[tokens] & torch.isin(self._word[tokens], self._word[self._ids[label]])
