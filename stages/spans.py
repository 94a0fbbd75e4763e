"""Turn tags into the prompts that Grounding DINO reads, and scores of tokens into scores of tags.

Labels come from token spans, never from decoded phrases: a prompt records which tokens belong to which tag. So no label
can be merged with its neighbor, cut, or empty.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

import numpy as np

CLS, SEP, DOT = 101, 102, 1012
"""Token ids of BERT that are built into Grounding DINO: a sub-sentence ends at each of them."""


@dataclass
class Prompt:
    """One text for the detector: `[CLS] tag . tag . ... [SEP]`."""

    ids: list[int]
    tags: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """For each tag the range of its tokens in `ids`, `[start, end)`, without its dot."""


def normalize(tag: str) -> str:
    """Return the tag in lower case, with single spaces, and without the marks that end a sub-sentence."""
    return " ".join(tag.lower().replace(".", " ").replace("?", " ").split())


def build_prompts(
    tags: list[str], encode: Callable[[str], list[int]], max_tokens: int = 256, unboxable: Container[str] = ()
) -> list[Prompt]:
    """Distribute the tags of one image over as few prompts as possible, of about equal length.

    Each tag is whole, and in exactly one prompt; tags keep their order. Tags with the same tokens are asked for once,
    under the first one's name. A tag that is too long for any prompt is left out.

    Args:
        tags: the tags of the image.
        encode: returns the token ids of a tag, without special tokens.
        max_tokens: the most tokens in a prompt, special tokens included (the model's `max_text_len`).
        unboxable: tags to leave out, normalized.
    """
    known: dict[tuple[int, ...], str] = {}
    for tag in tags:
        ids = () if normalize(tag) in unboxable else tuple(encode(normalize(tag)))
        if ids and len(ids) + 3 <= max_tokens:
            known.setdefault(ids, tag)
    if not known:
        return []
    # A crowded prompt has lower scores. So take the lowest limit of tokens that needs no more prompts than the highest.
    costs, most = [len(ids) + 1 for ids in known], max_tokens - 2
    count = _pack(costs, most)
    lowest = max(*costs, -(-sum(costs) // count))
    limit = next(limit for limit in range(lowest, most + 1) if _pack(costs, limit) == count)
    # Fill prompt after prompt up to that limit.
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
    """Return how many prompts tags of these costs need, when each is filled in order up to `limit` tokens."""
    count, used = 0, limit + 1
    for cost in costs:
        used += cost
        if used > limit:
            count, used = count + 1, cost
    return count


def span_scores(probabilities: np.ndarray, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest and the mean probability over the tokens of each tag: two arrays `[queries, tags]`, 0..1.

    `probabilities` are those of each query for each token of the prompt, `[queries, tokens]`, 0..1.
    """
    highest = np.stack([probabilities[:, start:end].max(1) for start, end in prompt.spans], 1)
    mean = np.stack([probabilities[:, start:end].mean(1, dtype=np.float64) for start, end in prompt.spans], 1)
    return highest, mean


def ranked_tags(mean: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Rank the tags of each query by their mean probability `[queries, tags]`, the highest first.

    Of equal tags the one with more tokens comes first, then the one that is first in the prompt. The result has indices
    into `prompt.tags`, int64 `[queries, tags]`.
    """
    lengths = np.array([end - start for start, end in prompt.spans])
    order = np.argsort(-lengths, kind="stable")
    return order[np.argsort(-mean[:, order], axis=1, kind="stable")]
