"""Matching pursuit: decompose a vision token into a sum of a few of the LLM's word embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.measures.vectors import WordVectors

DEPENDENT = 1e-5
"""A word of length 1 depends on the words taken before if at most this length is orthogonal to them."""


class Decomposition(NamedTuple):
    """The decompositions of N tokens in K steps."""

    words: Tensor
    """The number of the word that each step took, int64 `[N, K]`."""
    coefficients: Tensor
    """The coefficients of these words, float32 `[N, K]`; in the orthogonal form, those after the last step."""
    residual: Tensor
    """The squared length of the residual as a share of the token's, float32 `[N, K + 1]`: 1, then after each step."""


@torch.no_grad()
def matching_pursuit(
    tokens: Tensor, vectors: WordVectors, steps: int = 5, orthogonal: bool = False, positive: bool = False
) -> Decomposition:
    """Decompose tokens greedily (Mallat and Zhang 1993).

    The residual r starts as the token v. Each step takes the word w with the highest |<r, w>|, and subtracts <r, w> w
    from r. In the orthogonal form (Pati et al. 1993), r is v minus its projection on all words taken so far, so that no
    word is taken twice.

    Args:
        tokens: `[N, d]`.
        vectors: the V words. Zeros are taken only if no other word fits.
        steps: the number K of words for each token.
        orthogonal: whether to use the orthogonal form. A word that depends on those before it gets the coefficient 0.
        positive: whether to take the word with the highest <r, w>, and not with the highest |<r, w>|.
    """
    found = [_decompose(some, vectors, steps, orthogonal, positive) for some in vectors.chunks(tokens)]
    return Decomposition(*map(torch.cat, zip(*found, strict=True)))


def _decompose(tokens: Tensor, vectors: WordVectors, steps: int, orthogonal: bool, positive: bool) -> Decomposition:
    """Decompose tokens `[N, d]` whose scores with all words, `[N, V]`, fit into memory."""
    count, width = tokens.shape
    rest, energy = tokens, tokens.square().sum(-1).clamp_min(1e-30)
    left = [torch.ones_like(energy)]
    scores = tokens.new_empty(count, len(vectors))
    vectors.products(rest, scores)
    words = torch.zeros(count, steps, dtype=torch.int64, device=tokens.device)
    # The words of a token are `triangle.mT @ basis`: a QR factorization that grows by a word with each step.
    basis = tokens.new_zeros(count, steps, width) if orthogonal else tokens.new_empty(0)
    triangle = torch.eye(steps, dtype=torch.float64, device=tokens.device).repeat(count, 1, 1)
    along = tokens.new_zeros(count, steps)
    coefficients = torch.zeros_like(along)
    for step in range(steps):
        words[:, step] = _strongest(scores, words[:, : step if orthogonal else 0], positive)
        direction = vectors[words[:, step]]
        if orthogonal:
            for _ in range(2):  # twice, because rounding leaves a part of what a nearly dependent word shares
                inside = basis[:, :step] @ direction[..., None]
                direction = direction - (inside.mT @ basis[:, :step])[:, 0]
                triangle[:, :step, step] += inside[..., 0]
            length = direction.norm(dim=-1)
            new = length > DEPENDENT
            triangle[:, step, step] = torch.where(new, length, 1.0).double()
            direction = basis[:, step] = direction * torch.where(new, 1 / length, 0.0)[:, None]
        along[:, step] = (rest * direction).sum(-1)
        rest = rest - along[:, step, None] * direction
        left.append(rest.square().sum(-1) / energy)
        before = coefficients
        coefficients = torch.linalg.solve_triangular(triangle, along[..., None].double(), upper=True)[..., 0].float()
        if step + 1 < steps:
            changed = slice(0 if orthogonal else step, step + 1)
            _rescore(scores, rest, words[:, changed], (coefficients - before)[:, changed], vectors)
    return Decomposition(words, coefficients, torch.stack(left, 1))


def _strongest(scores: Tensor, taken: Tensor, positive: bool) -> Tensor:
    """Return the number of each token's strongest word, int64 `[N]`, leaving out those that are taken, `[N, k]`."""
    highest = scores.scatter_(1, taken, -torch.inf).max(-1)
    if positive:
        return highest.indices
    lowest = scores.scatter_(1, taken, torch.inf).min(-1)
    return torch.where(highest.values >= -lowest.values, highest.indices, lowest.indices)


def _rescore(scores: Tensor, rest: Tensor, words: Tensor, change: Tensor, vectors: WordVectors) -> None:
    """Bring the scores up to date with the residuals `rest`, whose coefficients of `words` have changed by `change`.

    Many tokens take the same words, and the cosines of these words with all words give the change of all scores
    (Rubinstein et al. 2008, batch OMP). This costs less than the products of the residuals with all words. A GPU
    computes these products instead, because it would have to wait for the number of different words.
    """
    if rest.device.type == "cpu":
        distinct, place = torch.unique(words, return_inverse=True)
        most = int(len(rest) * (1 - len(distinct) / rest.shape[-1]))
        shares = rest.new_zeros(len(rest), len(distinct)).scatter_(1, place, change)
        if vectors.subtract(shares, distinct, most, scores):
            return
    vectors.products(rest, scores)
