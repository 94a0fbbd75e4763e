"""Answers to questions against the true ones, by exact match."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_answer(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces, so that "A dog." is "dog"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said: Sequence[str], truth: Sequence[str | Sequence[str]]) -> float:
    """The share of answers that are one of the true ones, as `plain_answer` has both.

    Raises:
        ValueError: there is none.
    """
    if not said:
        raise ValueError("there is no answer to score")
    right = 0
    for answer, true in zip(said, truth, strict=True):
        known = [true] if isinstance(true, str) else list(true)
        right += plain_answer(answer) in {plain_answer(one) for one in known}
    return right / len(said)
