"""Align(V, W): whether the patches whose tokens say a label are the patches that show it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ThresholdRule = Literal["best", "fixed", "argmax"]
"""Which patches a label is found on, by the cosine s of their tokens with the label's embedding; the paper is silent.
`best`: s above the one threshold that gives the whole set the highest Align; `fixed`: s above a given one; `argmax`:
those whose s is highest for this label among the image's labels, so that each patch says one."""
THRESHOLDS = torch.linspace(-1, 1, 201)
ROUNDING = 1e-5
"""By which two cosines of the same vectors may differ."""


def similarity(tokens: Tensor, words: Tensor) -> Tensor:
    """Cosines `[L, P]` of label embeddings `[L, d]` with an image's tokens `[P, d]`; 0 for a vector of zeros."""
    return F.normalize(words.float(), dim=-1) @ F.normalize(tokens.float(), dim=-1).mT


def iou(found: Tensor, shown: Tensor) -> Tensor:
    """Intersection over union of bool `[..., P]`; 0 where both are empty."""
    union = (found | shown).sum(-1)
    return (found & shown).sum(-1) / union.clamp_min(1)


class Align:
    """Align(V, W) = 1/N sum_n IoU({p: v_p says w_n}, {p: the mask of n shows p}), over all pairs n of an image and a
    label of it whose mask has a patch.

    V are an image's projected tokens, W the averaged word embeddings of its labels. Regions of one label are one mask.

    Args:
        rule: when a patch says a word, see `ThresholdRule`.
        threshold: the cosine of rule `fixed`.
    """

    def __init__(self, rule: ThresholdRule = "best", threshold: float = 0.5) -> None:
        self.rule, self.threshold = rule, threshold
        self._pairs = torch.zeros((), dtype=torch.int64)
        self.sums = torch.zeros(len(THRESHOLDS) if rule == "best" else 1, dtype=torch.float64)

    @property
    def pairs(self) -> int:
        """N."""
        return int(self._pairs)

    def add(self, tokens: Tensor, words: Tensor, shown: Tensor, rivals: Tensor | None = None) -> None:
        """Take an image. The sums stay where its tokens are: to read them would wait for the GPU.

        Args:
            tokens: `[P, d]`.
            words: `[L, d]`, of its labels, each once.
            shown: bool `[L, P]`, the patches of each.
            rivals: `[R, d]`, what a patch may say besides, by the rule `argmax`.
        """
        scores = similarity(tokens, words)
        if self.rule == "argmax":
            best = scores.argmax(0)
            if rivals is not None:  # of equals, but for rounding, the image's own label
                best = best.where(scores.amax(0) >= similarity(tokens, rivals).amax(0) - ROUNDING, len(scores))
            found = (best == torch.arange(len(scores), device=best.device)[:, None])[None]
        elif self.rule == "fixed":
            found = (scores > self.threshold)[None]
        else:
            found = scores > THRESHOLDS.to(scores.device)[:, None, None]
        visible = shown.any(-1)
        self._pairs = self._pairs.to(visible.device) + visible.sum()
        self.sums = self.sums.to(visible.device) + (iou(found, shown) * visible).double().sum(-1)

    def value(self) -> float:
        """Between 0 and 1; NaN where no label was shown."""
        return float(self.sums.max() / self.pairs) if self.pairs else float("nan")

    def best_threshold(self) -> float:
        """The cosine that `value` is of."""
        return float(THRESHOLDS[self.sums.argmax()]) if self.rule == "best" else self.threshold
