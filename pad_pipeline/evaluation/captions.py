"""Captions against references: BLEU, ROUGE-L, CIDEr; METEOR and SPICE where Java is there."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence

from pad_pipeline.packages import OPTIONAL, installed

Words = list[str]
_TOKEN = re.compile(r"\w+(?:-\w+)*|[^\w\s]")
_CONTRACTION = re.compile(r"(n't|'s|'re|'ve|'ll|'d|'m)\b")
ORDER = 4
"""Longest n-grams."""
SIGMA = 6.0
"""Of CIDEr-D's penalty on lengths."""
BETA = 1.2
"""How much more ROUGE-L minds recall, as COCO's evaluation has it."""


def words_of(text: str) -> Words:
    """Lower case, punctuation dropped, contractions split as the Penn Treebank does. COCO's evaluation has a tokenizer
    of its own, in Java; on plain captions both give the same."""
    text = _CONTRACTION.sub(r" \1 ", text.lower().replace("\u2019", "'"))
    found = []
    for part in text.split():
        found += [part] if _CONTRACTION.fullmatch(part) else [w for w in _TOKEN.findall(part) if w[0].isalnum()]
    return found


def score_captions(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr of all captions, in COCO's units: shares of 1, CIDEr of 10.

    Args:
        said: one caption an image.
        references: one or more each.

    Raises:
        ValueError: there is none, or an image has no reference.
    """
    if not said or len(said) != len(references) or not all(references):
        raise ValueError("captions and references should be as many, and every image should have a reference")
    mine, theirs = [words_of(text) for text in said], [[words_of(text) for text in texts] for texts in references]
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu(mine, theirs), 1)}
    return scores | {"ROUGE-L": rouge_l(mine, theirs), "CIDEr": cider(mine, theirs)}


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words stands there."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 .. BLEU-4 (Papineni et al. 2002) of a corpus: the geometric mean of the n-gram precisions, each n-gram
    counted at most as often as in the reference that has it most, times exp(1 - r/c) where the captions are shorter (c)
    than the references that are nearest in length (r)."""
    right, all_ = [0] * ORDER, [0] * ORDER
    length = nearest = 0
    for words, refs in zip(said, references, strict=True):
        length += len(words)
        nearest += min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        for order in range(1, ORDER + 1):
            mine, most = ngrams(words, order), Counter[tuple[str, ...]]()
            for ref in refs:
                most |= ngrams(ref, order)
            right[order - 1] += (mine & most).total()
            all_[order - 1] += mine.total()
    brevity = math.exp(min(0.0, 1 - nearest / length)) if length else 0.0
    scores, product = [], 1.0
    for order in range(ORDER):
        product *= right[order] / all_[order] if all_[order] else 0.0
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores


def rouge_l(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean ROUGE-L (Lin 2004): F = (1 + b^2) P R / (R + b^2 P) of the longest common subsequence, with the best
    precision P and the best recall R over the references."""
    total = 0.0
    for words, refs in zip(said, references, strict=True):
        common = [longest_common(words, ref) for ref in refs]
        precision = max(common) / len(words) if words else 0.0
        recall = max((c / len(ref) for c, ref in zip(common, refs, strict=True) if ref), default=0.0)
        if precision and recall:
            total += (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return total / len(said)


def longest_common(a: Words, b: Words) -> int:
    """Words of the longest sequence that both have in this order."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for position, other in enumerate(b):
            row.append(before[position] + 1 if word == other else max(before[position + 1], row[position]))
    return row[-1]


def cider(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean CIDEr-D (Vedantam et al. 2015): 10 times the mean over n = 1..4, and over references, of the cosine of
    tf-idf vectors of n-grams, a caption's clipped to the reference's, times exp(-(difference in length)^2 / 2 sigma^2).

    As in COCO's evaluation, the length is that of the bigrams and idf is taken over the references that are scored, so
    that of one image it is 0.
    """
    documents: Counter[tuple[str, ...]] = Counter()
    for refs in references:
        documents.update({gram for ref in refs for order in range(1, ORDER + 1) for gram in ngrams(ref, order)})
    images = math.log(len(said))

    def vector(words: Words, order: int) -> dict[tuple[str, ...], float]:
        counts = ngrams(words, order)
        return {gram: count * (images - math.log(max(1, documents[gram]))) for gram, count in counts.items()}

    total = 0.0
    for words, refs in zip(said, references, strict=True):
        for order in range(1, ORDER + 1):
            mine = vector(words, order)
            for ref in refs:
                theirs = vector(ref, order)
                norm = _norm(mine) * _norm(theirs)
                if norm:
                    dot = sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items())
                    gap = max(len(words) - 1, 0) - max(len(ref) - 1, 0)
                    total += dot / norm * math.exp(-(gap**2) / (2 * SIGMA**2)) / ORDER / len(refs)
    return 10 * total / len(said)


def _norm(vector: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(value**2 for value in vector.values()))


def java_scores(
    said: Sequence[str], references: Sequence[Sequence[str]], say: Callable[[str], None]
) -> dict[str, float]:
    """METEOR and SPICE through pycocoevalcap; what is missing for them is said, and they are left out."""
    if not shutil.which("java"):
        say("METEOR and SPICE are left out: there is no Java. Install one (JRE 8 or newer).")
        return {}
    if not installed("pycocoevalcap"):
        say(f"METEOR and SPICE are left out: {OPTIONAL['pycocoevalcap'].install} (104 MB) brings them.")
        return {}
    mine = {number: [" ".join(words_of(text))] for number, text in enumerate(said)}
    theirs = {number: [" ".join(words_of(text)) for text in texts] for number, texts in enumerate(references)}
    scores: dict[str, float] = {}
    for name in ("METEOR", "SPICE"):
        try:
            kind = getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name.capitalize())
            scores[name] = float(kind().compute_score(theirs, mine)[0])
        except Exception as error:  # programs of their own: whatever they trip over, the other scores stand
            say(f"{name} is left out: it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}).")
    return scores
