"""Score short answers by exact match with the true answers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(rf"[{re.escape(string.punctuation)}](?!\d)")


def plain_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra spaces: "A dog." becomes "dog".

    Two things stay: punctuation before a digit (1.5, -5), and an article that is the whole answer (the choice "A").
    """
    bare = " ".join(_PUNCTUATION.sub("", text.lower()).split())
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare


def exact_match(answers: Sequence[str], truth: Sequence[str | Sequence[str]]) -> float:
    """Return the share of answers (0..1) that equal a true answer to their question, after `plain_answer` on both.

    Raise `ValueError` without an answer.
    """
    if not answers:
        raise ValueError("there is no answer to score")
    pairs = [(answer, [true] if isinstance(true, str) else true) for answer, true in zip(answers, truth, strict=True)]
    return sum(plain_answer(answer) in map(plain_answer, known) for answer, known in pairs) / len(pairs)
