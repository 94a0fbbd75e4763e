"""Score captions against references: BLEU, ROUGE-L and CIDEr; with Java also METEOR and SPICE."""

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
"""The length in words of the longest n-grams that BLEU and CIDEr count."""
SIGMA = 6.0
"""The width sigma of CIDEr-D's penalty on differences in length, in words."""
BETA = 1.2
"""The weight b of recall over precision in ROUGE-L, as in COCO's evaluation."""


def split_words(text: str) -> Words:
    """Split a caption into words in lower case, without punctuation; split contractions as the Penn Treebank does.

    For plain captions, these are the words of COCO's evaluation, whose tokenizer needs Java.
    """
    text = _CONTRACTION.sub(r" \1 ", text.lower().replace("\u2019", "'"))
    words = []
    for part in text.split():
        words += [part] if _CONTRACTION.fullmatch(part) else [w for w in _TOKEN.findall(part) if w[0].isalnum()]
    return words


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return BLEU-1 to BLEU-4, ROUGE-L (all 0..1) and CIDEr (0..10) over all captions, one for each image.

    Raise `ValueError` if there is no caption, or an image has no reference.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError("every image should have a caption and at least one reference")
    words = [split_words(text) for text in captions]
    truth = [[split_words(text) for text in texts] for texts in references]
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu(words, truth), 1)}
    return scores | {"ROUGE-L": rouge_l(words, truth), "CIDEr": cider(words, truth)}


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """Count each sequence of `order` words."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Return BLEU-1 to BLEU-4 (Papineni et al. 2002) of a corpus, each 0..1.

    BLEU-n is the geometric mean of the precisions of 1-grams to n-grams. An n-gram counts at most as often as in the
    reference that has it most often. If the captions have fewer words (c) than the references (r), the mean is
    multiplied by exp(1 - r/c). Only the reference nearest in length to each caption counts for r.
    """
    # Count the n-grams of all captions, and how many of them the references have.
    right, total = [0] * ORDER, [0] * ORDER
    length = nearest = 0
    for words, refs in zip(captions, references, strict=True):
        length += len(words)
        nearest += min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        for order in range(1, ORDER + 1):
            counts, most = ngrams(words, order), Counter[tuple[str, ...]]()
            for ref in refs:
                most |= ngrams(ref, order)
            right[order - 1] += (counts & most).total()
            total[order - 1] += counts.total()
    brevity = math.exp(min(0.0, 1 - nearest / length)) if length else 0.0
    precisions = [ours / all_ if all_ else 0.0 for ours, all_ in zip(right, total, strict=True)]
    return [brevity * math.prod(precisions[:order]) ** (1 / order) for order in range(1, ORDER + 1)]


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the mean ROUGE-L (Lin 2004) of captions, 0..1.

    A caption's score is (1 + b^2) P R / (R + b^2 P), where b is `BETA`. P and R are the precision and the recall of the
    longest common subsequence with a reference. Each is the best over all references.
    """
    total = 0.0
    for words, refs in zip(captions, references, strict=True):
        common = [longest_common(words, ref) for ref in refs]
        precision = max(common) / len(words) if words else 0.0
        recall = max((c / len(ref) for c, ref in zip(common, refs, strict=True) if ref), default=0.0)
        if precision and recall:
            total += (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return total / len(captions)


def longest_common(a: Words, b: Words) -> int:
    """Return the number of words in the longest common subsequence of two texts."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for position, other in enumerate(b):
            row.append(before[position] + 1 if word == other else max(before[position + 1], row[position]))
    return row[-1]


def cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the mean CIDEr-D (Vedantam et al. 2015) of captions, 0..10.

    For each reference and each n = 1..4, a cosine compares the tf-idf vectors of n-grams, with the caption's values
    clipped to the reference's. It is multiplied by a penalty for another length, exp(-(difference in length)^2 /
    (2 sigma^2)), where sigma is `SIGMA`. A caption's score is 10 times the mean of these products.

    As in COCO's evaluation, lengths are counted in bigrams, and idf uses only the given references. So a single image
    has the score 0.
    """
    # The number of images whose references have an n-gram.
    documents: Counter[tuple[str, ...]] = Counter()
    for refs in references:
        documents.update({gram for ref in refs for order in range(1, ORDER + 1) for gram in ngrams(ref, order)})
    images = math.log(len(captions))

    def vector(words: Words, order: int) -> tuple[dict[tuple[str, ...], float], float]:
        """Return the tf-idf of each n-gram, and the length of this vector."""
        counts = ngrams(words, order).items()
        values = {gram: count * (images - math.log(max(1, documents[gram]))) for gram, count in counts}
        return values, math.sqrt(sum(value**2 for value in values.values()))

    total = 0.0
    for words, refs in zip(captions, references, strict=True):
        for order in range(1, ORDER + 1):
            caption, length = vector(words, order)
            for ref in refs:
                truth, true_length = vector(ref, order)
                if norm := length * true_length:
                    dot = sum(min(caption[gram], truth.get(gram, 0.0)) * truth.get(gram, 0.0) for gram in caption)
                    gap = max(len(words) - 1, 0) - max(len(ref) - 1, 0)
                    total += dot / norm * math.exp(-(gap**2) / (2 * SIGMA**2)) / ORDER / len(refs)
    return 10 * total / len(captions)


def java_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], say: Callable[[str], None]
) -> dict[str, float]:
    """Return METEOR and SPICE (0..1) from pycocoevalcap; the arguments are those of `score_captions`.

    If a score can't be computed, it is left out, and `say` gets the reason.
    """
    if not shutil.which("java"):
        say("METEOR and SPICE are left out: Java is not installed. Install it (JRE 8 or newer).")
        return {}
    if not installed("pycocoevalcap"):
        say(f"METEOR and SPICE are left out: install their package (104 MB): {OPTIONAL['pycocoevalcap'].install}")
        return {}
    words = {number: [" ".join(split_words(text))] for number, text in enumerate(captions)}
    truth = {number: [" ".join(split_words(text)) for text in texts] for number, texts in enumerate(references)}
    scores: dict[str, float] = {}
    for name in ("METEOR", "SPICE"):
        try:
            kind = getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name.capitalize())
            scores[name] = float(kind().compute_score(truth, words)[0])
        except Exception as error:  # if one of these Java programs fails, the other scores still count
            say(f"{name} is left out: it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}).")
    return scores
