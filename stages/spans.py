"""Functions that build prompts from tags for Grounding DINO, and that compute tag scores from token scores.

A prompt records which tokens belong to which tag. Labels come from these spans and not from decoded text, which could
merge a label with its neighbor, cut it, or make it empty.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

import numpy as np

CLS, SEP, DOT = 101, 102, 1012
"""Token ids of BERT that end a sub-sentence; these ids are built into Grounding DINO."""


@dataclass
class Prompt:
    """One text for the detector: `[CLS] tag . tag . ... [SEP]`."""

    ids: list[int]
    tags: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """For each tag, the range `[start, end)` of its tokens in `ids`, without its dot."""


def normalize(tag: str) -> str:
    """Return the tag in lower case, with single spaces, and without `.` and `?`, which end a sub-sentence."""
    return " ".join(tag.lower().replace(".", " ").replace("?", " ").split())


def build_prompts(
    tags: list[str], encode: Callable[[str], list[int]], max_tokens: int = 256, unboxable: Container[str] = ()
) -> list[Prompt]:
    """Distribute the tags of one image, in order, over as few prompts as possible, of about equal length.

    Of tags with the same tokens, only the first is in a prompt. Tags that are too long for a prompt are left out.

    Args:
        tags: the tags of the image.
        encode: returns the token ids of a normalized tag, without special tokens.
        max_tokens: the most tokens in a prompt, with special tokens (the model's `max_text_len`).
        unboxable: normalized tags to leave out.
    """
    known: dict[tuple[int, ...], str] = {}
    for tag in tags:
        ids = () if normalize(tag) in unboxable else tuple(encode(normalize(tag)))
        if ids and len(ids) + 3 <= max_tokens:
            known.setdefault(ids, tag)
    if not known:
        return []
    # Scores are lower in a crowded prompt. So find the lowest token limit that needs no more prompts than `max_tokens`.
    costs, most = [len(ids) + 1 for ids in known], max_tokens - 2
    count = _pack(costs, most)
    lowest = max(*costs, -(-sum(costs) // count))
    limit = next(limit for limit in range(lowest, most + 1) if _pack(costs, limit) == count)
    prompts = [Prompt([CLS])]
    for ids, tag in known.items():
        if len(prompts[-1].ids) + len(ids) > limit:
            prompts.append(Prompt([CLS]))
        prompt = prompts[-1]
        prompt.spans.append((len(prompt.ids), len(prompt.ids) + len(ids)))
        prompt.tags.append(tag)
        prompt.ids += [*ids, DOT]
    for prompt in prompts:
        prompt.ids.append(SEP)
    return prompts


def _pack(costs: list[int], limit: int) -> int:
    """Return the number of prompts for tags with these numbers of tokens, if each prompt holds up to `limit` tokens."""
    count, used = 0, limit + 1
    for cost in costs:
        used += cost
        if used > limit:
            count, used = count + 1, cost
    return count


def span_scores(probabilities: np.ndarray, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest and the mean probability of each tag's tokens: two arrays `[queries, tags]`, 0..1.

    `probabilities` has the probability of each token of the prompt for each query, `[queries, tokens]`, 0..1.
    """
    highest = np.stack([probabilities[:, start:end].max(1) for start, end in prompt.spans], 1)
    mean = np.stack([probabilities[:, start:end].mean(1, dtype=np.float64) for start, end in prompt.spans], 1)
    return highest, mean


def ranked_tags(mean: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Rank the tags of each query by `mean`, their mean probabilities `[queries, tags]`, the highest first.

    Among equal tags, longer tags (in tokens) come first, and then tags that are earlier in the prompt. The result has
    indices into `prompt.tags`, int64 `[queries, tags]`.
    """
    lengths = np.array([end - start for start, end in prompt.spans])
    order = np.argsort(-lengths, kind="stable")
    return order[np.argsort(-mean[:, order], axis=1, kind="stable")]
