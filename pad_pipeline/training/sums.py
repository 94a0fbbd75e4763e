"""Count what one optimizer step holds, and name the sums that its micro-batches and ranks add up."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.training.batches import Batch, Step
from pad_pipeline.training.losses import patch_loss_weight
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.settings import PatchLossSettings


class StepCounts(NamedTuple):
    """Counts of what one optimizer step holds, over all ranks."""

    supervised_tokens: int
    patch_weight: float
    """Divisor of L_patch, see `losses.patch_loss_weight`."""
    regions: int
    images: int
    positions: int
    """Token positions of all sequences, padding included."""
    dropped: int
    """Samples from which nothing could be learned."""

    @property
    def caption_weight(self) -> float:
        """Divisor of L_caption: the number of supervised tokens, and 1 where there are none."""
        return max(float(self.supervised_tokens), 1.0)

    def patch_divisor(self, device: torch.device) -> Tensor:
        """Return `patch_weight` as a float64 scalar on `device`."""
        return torch.tensor(self.patch_weight, dtype=torch.float64, device=device)


class StepSums(NamedTuple):
    """Sums over the micro-batches and ranks of one optimizer step. `Trainer._backward` returns them in this order."""

    caption_loss: float
    patch_loss: float
    cosine: float
    """Sum over pairs of patch and region of weight x cosine, see `losses.mean_cosine`."""
    cosine_weight: float
    caption_gradient: float
    """Squared norm of L_caption's gradient at the vision tokens."""
    patch_gradient: float
    """Squared norm of beta L_patch's gradient at the vision tokens."""

    @property
    def mean_cosine(self) -> float | None:
        """Mean cosine of patches and labels; None where there is no pair."""
        return self.cosine / self.cosine_weight if self.cosine_weight else None

    @property
    def patch_share(self) -> float | None:
        """Share of L_patch in the gradient at the vision tokens, 0..1; None where the gradient is 0."""
        caption, patch = (math.sqrt(max(square, 0.0)) for square in (self.caption_gradient, self.patch_gradient))
        return math.sqrt(self.patch_gradient) / (caption + patch) if caption + patch else None


def count_step(model: MultimodalModel, step: Step, here: Ranks) -> StepCounts:
    """Count what a step holds, over all ranks."""
    pooled = [model.pooled(part.coverage) for part in step.parts]
    counts = [
        sum(len(part.targets) for part in step.parts),
        sum(float(patch_loss_weight(coverage, model.settings.patch_loss)) for coverage in pooled),
        sum(len(part.coverage) for part in step.parts),
        sum(len(part.pixels) for part in step.parts),
        sum(part.ids.numel() for part in step.parts),
        len(step.problems),
    ]
    # In double precision, because float32 can't represent every integer beyond 2^24.
    tokens, weight, *rest = here.sum(torch.tensor(counts, dtype=torch.float64, device=here.device)).tolist()
    return StepCounts(int(tokens), weight, *map(int, rest))


def step_labels(settings: PatchLossSettings, parts: list[Batch], here: Ranks) -> Tensor | None:
    """Return the distinct label embeddings `[L, d]` of a step, over all ranks; None unless the loss is contrastive."""
    if settings.kind != "contrastive":
        return None
    of_rank: Tensor = torch.unique(torch.cat([part.embeds for part in parts]), dim=0)
    of_step: Tensor = torch.unique(torch.cat(here.gather(of_rank)), dim=0)
    return of_step.to(here.device)
