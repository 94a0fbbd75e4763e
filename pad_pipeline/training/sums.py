"""Count what one optimizer step holds, and name the sums that its micro-batches and ranks add up."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.training.batches import Batch, Step
from pad_pipeline.training.losses import patch_loss_weight
from pad_pipeline.training.model import Losses, MultimodalModel
from pad_pipeline.training.ranks import Ranks


class StepCounts(NamedTuple):
    """Counts of the examples and tokens in one optimizer step, over all ranks, and the step's distinct labels."""

    supervised_tokens: int
    patch_weight: float
    """Divisor of L_patch, see `losses.patch_loss_weight`."""
    regions: int
    images: int
    positions: int
    """Token positions of all sequences, padding included."""
    dropped: int
    """Samples from which nothing could be learned."""
    labels: Tensor | None
    """`[L, d]`, the distinct label embeddings; None unless the loss is contrastive."""

    def losses(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Return the losses of a micro-batch, divided by the weights of the whole step."""
        patch_weight = torch.tensor(self.patch_weight, dtype=torch.float64, device=batch.ids.device)
        losses: Losses = model(batch, max(float(self.supervised_tokens), 1.0), patch_weight, self.labels)
        return losses


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
    """Count what a step holds, and gather its labels, over all ranks."""
    settings, labels = model.settings.patch_loss, None
    if settings.kind == "contrastive":
        of_rank = torch.unique(torch.cat([part.embeds for part in step.parts]), dim=0)
        labels = torch.unique(torch.cat(here.gather(of_rank)), dim=0).to(here.device)
    pooled = [model.pooled(part.coverage) for part in step.parts]
    counts = [
        sum(len(part.targets) for part in step.parts),
        sum(float(patch_loss_weight(coverage, settings)) for coverage in pooled),
        sum(len(part.coverage) for part in step.parts),
        sum(len(part.pixels) for part in step.parts),
        sum(part.ids.numel() for part in step.parts),
        len(step.problems),
    ]
    # In double precision, because float32 can't represent every integer beyond 2^24.
    tokens, weight, *rest = here.sum(torch.tensor(counts, dtype=torch.float64, device=here.device)).tolist()
    regions, images, positions, dropped = map(int, rest)
    return StepCounts(int(tokens), weight, regions, images, positions, dropped, labels)
