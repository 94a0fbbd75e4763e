"""Tags -> the text that Grounding DINO reads, and token scores -> tags.

Labels come from token spans, never from decoded phrases: each tag knows which tokens are its own, so no label can be
merged with its neighbor, cut, or empty.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CLS, SEP, DOT = 101, 102, 1012
"""BERT's ids, which Grounding DINO has built in: sub-sentences end at them."""


@dataclass
class Prompt:
    """One text: `[CLS] tag . tag . ... [SEP]`."""

    ids: list[int] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Each tag's tokens, `[start, end)`, without its dot."""


def normalize(tag: str) -> str:
    """Lower case, single spaces, and none of the marks that end a sub-sentence."""
    return " ".join(tag.lower().replace(".", " ").replace("?", " ").split())


UNBOXABLE = Path(__file__).with_name("unboxable.txt")
"""Tags that name nothing one can put a box around: actions, colors, whole scenes, times, styles, ideas."""


def read_unboxable(path: Path) -> frozenset[str]:
    """The tags of a file, one a line; `#` starts a comment.

    Raises:
        OSError: it can't be read.
        UnicodeDecodeError: it is no text.
    """
    lines = (line.partition("#")[0] for line in path.read_text("utf-8-sig").splitlines())
    return frozenset(tag for line in lines if (tag := normalize(line)))


def build_prompts(
    tags: list[str],
    encode: Callable[[str], list[int]],
    max_tokens: int = 256,
    unboxable: Container[str] = (),
) -> list[Prompt]:
    """The prompts for one image: every tag whole in exactly one of them, in order, of about equal length.

    Args:
        tags: the tagger's.
        encode: token ids of one tag, without special tokens.
        max_tokens: of one prompt, special tokens included (the model's `max_text_len`).
        unboxable: tags that are left out, as `normalize` gives them.

    Returns:
        No prompt where there is no tag. Tags that are equal token by token are asked for once, under the first name;
        a tag that is too long for any prompt is left out.
    """
    known: dict[tuple[int, ...], str] = {}
    for tag in tags:
        ids = () if normalize(tag) in unboxable else tuple(encode(normalize(tag)))
        if ids and len(ids) + 3 <= max_tokens:
            known.setdefault(ids, tag)
    costs = [len(ids) + 1 for ids in known]
    # As few prompts as will do, then as even as that allows: scores of a crowded prompt are lower.
    count, limit = _pack(costs, max_tokens - 2), max_tokens - 2
    for smaller in range(-(-sum(costs) // max(count, 1)), limit):
        if smaller >= max(costs, default=0) and _pack(costs, smaller) == count:
            limit = smaller
            break
    prompts: list[Prompt] = []
    for ids, tag in known.items():
        if not prompts or len(prompts[-1].ids) + len(ids) + 1 > limit + 1:
            prompts.append(Prompt([CLS]))
        prompt = prompts[-1]
        prompt.spans.append((len(prompt.ids), len(prompt.ids) + len(ids)))
        prompt.tags.append(tag)
        prompt.ids += [*ids, DOT]
    for prompt in prompts:
        prompt.ids.append(SEP)
    return prompts


def _pack(costs: list[int], limit: int) -> int:
    """How many prompts it takes when each is filled up to `limit` tokens in order."""
    count, used = 0, limit + 1
    for cost in costs:
        used += cost
        if used > limit:
            count, used = count + 1, cost
    return count


def span_scores(probabilities: np.ndarray, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """The highest and the mean probability over each tag's tokens.

    Args:
        probabilities: `[queries, tokens]`, 0..1.

    Returns:
        Two arrays `[queries, tags]`.
    """
    highest = np.stack([probabilities[:, start:end].max(1) for start, end in prompt.spans], 1)
    mean = np.stack([probabilities[:, start:end].mean(1, dtype=np.float64) for start, end in prompt.spans], 1)
    return highest, mean


def ranked_tags(mean: np.ndarray, prompt: Prompt) -> np.ndarray:
    """The tags of each query, best first: highest mean; of equals the one with more tokens, then the first.

    Args:
        mean: `[queries, tags]`.

    Returns:
        Places in `prompt.tags`, `[queries, tags]`.
    """
    lengths = np.array([end - start for start, end in prompt.spans])
    order = np.argsort(-lengths, kind="stable")
    return order[np.argsort(-mean[:, order], axis=1, kind="stable")]
