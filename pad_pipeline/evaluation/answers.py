"""Answers to questions against the true ones, by exact match."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(rf"[{re.escape(string.punctuation)}](?!\d)")


def plain_answer(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces, so that "A dog." is "dog". What stands before a digit
    stays (1.5, -5), and so does an article that is the whole answer (the choice A)."""
    bare = " ".join(_PUNCTUATION.sub("", text.lower()).split())
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare


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
