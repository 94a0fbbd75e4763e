"""Matching pursuit: decompose a vision token into a sum of a few of the LLM's word embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_length(atoms: Tensor) -> Tensor:
    """Scale vectors `[V, d]` to length 1, in float32; zeros stay zeros."""
    return F.normalize(atoms.float(), dim=-1)


class Decomposition(NamedTuple):
    """The decompositions of N tokens in K steps."""

    words: Tensor
    """The index of the atom that each step took, int64 `[N, K]`."""
    coefficients: Tensor
    """The coefficients of these atoms, float32 `[N, K]`; in the orthogonal form, those after the last step."""
    residual: Tensor
    """The squared length of the residual as a share of the token's, float32 `[N, K + 1]`: 1, then after each step."""


def matching_pursuit(
    tokens: Tensor, atoms: Tensor, steps: int = 5, orthogonal: bool = False, positive: bool = False
) -> Decomposition:
    """Decompose tokens greedily (Mallat and Zhang 1993).

    The residual r starts as the token v. Each step takes the atom w with the highest |<r, w>|, and subtracts <r, w> w
    from r. In the orthogonal form (Pati et al. 1993), r is v minus its projection on all atoms taken so far, so that no
    atom is taken twice.

    Args:
        tokens: `[N, d]`.
        atoms: word embeddings of length 1, `[V, d]`, see `unit_length`. Zeros are taken only if no other atom fits.
        steps: the number K of atoms for each token.
        orthogonal: whether to use the orthogonal form.
        positive: whether to take the atom with the highest <r, w>, and not with the highest |<r, w>|.
    """
    start = tokens.float()
    rest, energy = start, start.square().sum(-1).clamp_min(1e-30)
    words: list[Tensor] = []
    taken: list[Tensor] = []
    left = [torch.ones_like(energy)]
    for _ in range(steps):
        scores = rest @ atoms.mT
        strength = scores if positive else scores.abs()
        if orthogonal and words:
            strength = strength.scatter(1, torch.stack(words, 1), -torch.inf)
        best = strength.argmax(-1)
        words.append(best)
        if orthogonal:
            chosen = atoms[torch.stack(words, 1)]  # [N, k, d]
            # A pseudo-inverse, because linearly dependent atoms are taken once the residual is zero.
            gram = (chosen @ chosen.mT).double()
            against = chosen.double() @ start[..., None].double()
            coefficients = (torch.linalg.pinv(gram, hermitian=True) @ against)[..., 0].float()
            rest = start - (coefficients[..., None] * chosen).sum(1)
        else:
            taken.append(scores.gather(1, best[:, None])[:, 0])
            rest = rest - taken[-1][:, None] * atoms[best]
        left.append(rest.square().sum(-1) / energy)
    found = coefficients if orthogonal else torch.stack(taken, 1)
    return Decomposition(torch.stack(words, 1), found, torch.stack(left, 1))
