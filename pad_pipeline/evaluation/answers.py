"""Scores short answers by exact match with the true ones."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(rf"[{re.escape(string.punctuation)}](?!\d)")


def plain_answer(text: str) -> str:
    """Reduce an answer to lower case without punctuation, articles and extra spaces, so that "A dog." becomes "dog".

    Punctuation before a digit stays (1.5, -5), and so does an article that is the whole answer (the choice "A").
    """
    bare = " ".join(_PUNCTUATION.sub("", text.lower()).split())
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare


def exact_match(said: Sequence[str], truth: Sequence[str | Sequence[str]]) -> float:
    """Return the share of answers (0..1) that equal their true answer, or one of several, after `plain_answer`.

    Raises:
        ValueError: there is no answer.
    """
    if not said:
        raise ValueError("there is no answer to score")
    right = 0
    for answer, true in zip(said, truth, strict=True):
        known = [true] if isinstance(true, str) else list(true)
        right += plain_answer(answer) in {plain_answer(one) for one in known}
    return right / len(said)
