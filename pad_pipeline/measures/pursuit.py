"""Matching pursuit: a vision token as a sparse combination of the LLM's words."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(atoms: Tensor) -> Tensor:
    """`[V, d]` in float32, each of length 1; zeros stay zeros."""
    return F.normalize(atoms.float(), dim=-1)


class Pursuit(NamedTuple):
    """What was found for N tokens in K steps."""

    words: Tensor
    """int64 `[N, K]`: the atom taken in each step."""
    coefficients: Tensor
    """`[N, K]`: of atoms of length 1; orthogonal: as they are after the last step."""
    residual: Tensor
    """`[N, K + 1]`: the share of the token's energy that is left before the first step (1) and after each."""


def matching_pursuit(
    tokens: Tensor, atoms: Tensor, steps: int = 5, orthogonal: bool = False, positive: bool = False
) -> Pursuit:
    """Greedy decomposition (Mallat and Zhang 1993): r_0 = v; in step k the atom w with the highest |<r, w>| is taken,
    and r loses <r, w> w. The orthogonal form (Pati et al. 1993) projects v anew on all that was taken, so that no atom
    comes twice.

    Args:
        tokens: `[N, d]`.
        atoms: `[V, d]`, word embeddings; made to length 1 here. Zeros are not taken while another atom fits.
        steps: atoms that each token gets.
        orthogonal: the orthogonal form.
        positive: take only atoms that point the token's way: the highest <r, w>.
    """
    return pursue(tokens, unit(atoms), steps, orthogonal, positive)


def pursue(
    tokens: Tensor, dictionary: Tensor, steps: int = 5, orthogonal: bool = False, positive: bool = False
) -> Pursuit:
    """The same with atoms that `unit` made, which for many calls is worth while."""
    start = tokens.float()
    rest, energy = start, start.square().sum(-1).clamp_min(1e-30)
    words: list[Tensor] = []
    taken: list[Tensor] = []
    left = [torch.ones_like(energy)]
    for _ in range(steps):
        scores = rest @ dictionary.mT
        strength = scores if positive else scores.abs()
        if orthogonal and words:
            strength = strength.scatter(1, torch.stack(words, 1), -torch.inf)
        best = strength.argmax(-1)
        words.append(best)
        if orthogonal:
            chosen = dictionary[torch.stack(words, 1)]  # [N, k, d]
            # By the pseudo-inverse: where nothing is left, atoms are taken that depend on each other.
            gram = (chosen @ chosen.mT).double()
            against = chosen.double() @ start[..., None].double()
            coefficients = (torch.linalg.pinv(gram, hermitian=True) @ against)[..., 0].float()
            rest = start - (coefficients[..., None] * chosen).sum(1)
        else:
            taken.append(scores.gather(1, best[:, None])[:, 0])
            rest = rest - taken[-1][:, None] * dictionary[best]
        left.append(rest.square().sum(-1) / energy)
    return Pursuit(torch.stack(words, 1), coefficients if orthogonal else torch.stack(taken, 1), torch.stack(left, 1))
