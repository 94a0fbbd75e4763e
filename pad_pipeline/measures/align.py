"""The measure Align(V, W): how well the patches whose tokens say a label match the patches that show it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ThresholdRule = Literal["best", "fixed", "argmax"]
"""Which patches say a label, by the cosine s of their token with the label's embedding; the paper leaves it open.

`best`: those with s above a threshold, the one that gives the whole data set the highest Align. `fixed`: those with s
above a given threshold. `argmax`: those whose s is higher for this label than for the image's other labels, so that
each patch says one label.
"""
THRESHOLDS = torch.linspace(-1, 1, 201)
"""The thresholds that the rule `best` tries."""
ROUNDING = 1e-5
"""The largest difference between two computations of the same cosine."""


def cosines(tokens: Tensor, words: Tensor) -> Tensor:
    """Return the cosines `[L, P]` of label embeddings `[L, d]` with tokens `[P, d]`; 0 for a vector of zeros."""
    return F.normalize(words.float(), dim=-1) @ F.normalize(tokens.float(), dim=-1).mT


def iou(found: Tensor, shown: Tensor) -> Tensor:
    """Return the intersection over union of two sets of patches, each bool `[..., P]`; 0 where both are empty."""
    union = (found | shown).sum(-1)
    return (found & shown).sum(-1) / union.clamp_min(1)


class Align:
    """The measure Align(V, W) = 1/N sum_n IoU({p: v_p says w_n}, {p: the mask of n shows p}) (arXiv 2505.17316).

    V are the projected tokens of an image, W the embeddings of its labels. The sum is over all pairs n of an image and
    one of its labels, if the label's mask has any patch. The regions of one label count as one mask.

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
        """The number N of pairs of an image and a label."""
        return int(self._pairs)

    def add(self, tokens: Tensor, words: Tensor, shown: Tensor, rivals: Tensor | None = None) -> None:
        """Add an image. The sums stay on the device of its tokens, because reading them would wait for the GPU.

        Args:
            tokens: the projected tokens, `[P, d]`.
            words: the embeddings of the image's labels, each label once, `[L, d]`.
            shown: the patches of each label, bool `[L, P]`.
            rivals: for the rule `argmax`, embeddings of other labels that a patch may say, `[R, d]`.
        """
        scores = cosines(tokens, words)
        if self.rule == "argmax":
            best = scores.argmax(0)
            if rivals is not None:  # a tie, up to rounding, goes to the image's label
                best = best.where(scores.amax(0) >= cosines(tokens, rivals).amax(0) - ROUNDING, len(scores))
            found = (best == torch.arange(len(scores), device=best.device)[:, None])[None]
        elif self.rule == "fixed":
            found = (scores > self.threshold)[None]
        else:
            found = scores > THRESHOLDS.to(scores.device)[:, None, None]
        visible = shown.any(-1)
        self._pairs = self._pairs.to(visible.device) + visible.sum()
        self.sums = self.sums.to(visible.device) + (iou(found, shown) * visible).double().sum(-1)

    def value(self) -> float:
        """Return Align, 0..1; NaN where no label was shown."""
        return float(self.sums.max() / self.pairs) if self.pairs else float("nan")

    def best_threshold(self) -> float:
        """Return the threshold of the cosine with which `value` was computed."""
        return float(THRESHOLDS[self.sums.argmax()]) if self.rule == "best" else self.threshold
