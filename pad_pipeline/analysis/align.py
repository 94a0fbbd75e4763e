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
        self.pairs = 0
        self.sums = torch.zeros(len(THRESHOLDS) if rule == "best" else 1, dtype=torch.float64)

    def add(self, tokens: Tensor, words: Tensor, shown: Tensor) -> None:
        """Take an image.

        Args:
            tokens: `[P, d]`.
            words: `[L, d]`, of its labels, each once.
            shown: bool `[L, P]`, the patches of each.
        """
        scores = similarity(tokens, words)
        if self.rule == "argmax":
            found = F.one_hot(scores.argmax(0), len(scores)).mT.bool()[None]
        elif self.rule == "fixed":
            found = (scores > self.threshold)[None]
        else:
            found = scores > THRESHOLDS.to(scores.device)[:, None, None]
        visible = shown.any(-1)
        self.pairs += int(visible.sum())
        self.sums += iou(found[:, visible], shown[visible]).double().sum(-1).cpu()

    def value(self) -> float:
        """Between 0 and 1; NaN where no label was shown."""
        return float(self.sums.max() / self.pairs) if self.pairs else float("nan")

    def best_threshold(self) -> float:
        """The cosine that `value` is of."""
        return float(THRESHOLDS[self.sums.argmax()]) if self.rule == "best" else self.threshold
