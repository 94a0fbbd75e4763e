"""The measure Align(V, W): how well the patches whose tokens resemble a label match the patches that show it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ThresholdRule = Literal["best", "fixed", "argmax"]
"""The rule for which patches resemble a label, by the cosine of their token with the label's embedding.

`best`: the cosine is above the threshold that gives the data set its highest Align. `fixed`: it is above a given
threshold. `argmax`: it is higher than for the image's other labels, so that each patch resembles one label. The paper
does not say which it uses.
"""
THRESHOLDS = torch.linspace(-1, 1, 201)
"""The thresholds that the rule `best` tries."""
ROUNDING = 1e-5
"""The largest difference by rounding between two computations of the same cosine."""


def cosines(tokens: Tensor, words: Tensor) -> Tensor:
    """Return the cosines `[L, P]` of label embeddings `[L, d]` with tokens `[P, d]`; 0 for a vector of zeros."""
    return F.normalize(words.float(), dim=-1) @ F.normalize(tokens.float(), dim=-1).mT


def iou(found: Tensor, shown: Tensor) -> Tensor:
    """Return the intersection over union of two sets of patches, each bool `[..., P]`; 0 where both are empty."""
    union = (found | shown).sum(-1)
    return (found & shown).sum(-1) / union.clamp_min(1)


class Align:
    """Computes Align(V, W) = 1/N sum_n IoU({p: v_p resembles w_n}, {p: the mask of n has p}) (arXiv 2505.17316).

    V are the projected tokens of an image, with one token v_p for each patch p. W are the embeddings of its labels. The
    sum is over the N pairs of an image and one of its labels whose mask has a patch. All regions of a label in an image
    count as one mask.

    Args:
        rule: when a token resembles a label.
        threshold: the cosine for the rule `fixed`.
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
        """Add an image. Sums stay on the device of the tokens, so that nothing waits for the GPU.

        Args:
            tokens: the projected tokens, `[P, d]`.
            words: the embeddings of the image's labels, each label once, `[L, d]`.
            shown: the patches of each label, bool `[L, P]`.
            rivals: embeddings of labels of other images, which compete under the rule `argmax`, `[R, d]`.
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
        """Return Align, 0..1; NaN if no label had a patch."""
        return float(self.sums.max() / self.pairs) if self.pairs else float("nan")

    def best_threshold(self) -> float:
        """Return the threshold on the cosine that `value` used."""
        return float(THRESHOLDS[self.sums.argmax()]) if self.rule == "best" else self.threshold
