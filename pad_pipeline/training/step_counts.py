"""Count the samples and tokens of an optimizer step over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.training.batches import Batch, StepBatches
from pad_pipeline.training.losses import patch_loss_weight
from pad_pipeline.training.model import Losses, MultimodalModel
from pad_pipeline.training.ranks import Ranks


class StepCounts(NamedTuple):
    """Counts over all ranks in one optimizer step."""

    supervised_tokens: int
    patch_weight: float
    """The divisor of L_patch, see `losses.patch_loss_weight`."""
    regions: int
    images: int
    positions: int
    """The number of token positions of all sequences, padding included."""
    dropped: int
    """The number of samples from which nothing can be learned."""
    labels: Tensor | None
    """The distinct label embeddings, `[L, d]`; None unless the loss is contrastive."""

    def losses(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Return the losses of a micro-batch, each divided by its weight in the whole step."""
        patch_weight = torch.tensor(self.patch_weight, dtype=torch.float64, device=batch.ids.device)
        losses: Losses = model(batch, max(float(self.supervised_tokens), 1.0), patch_weight, self.labels)
        return losses


def count_step(model: MultimodalModel, step: StepBatches, here: Ranks) -> StepCounts:
    """Count the samples and tokens of a step over all ranks. A contrastive loss also needs the labels of all ranks."""
    settings, labels = model.settings.patch_loss, None
    if settings.kind == "contrastive":
        of_rank = torch.unique(torch.cat([batch.embeds for batch in step.batches]), dim=0)
        labels = torch.unique(torch.cat(here.gather(of_rank)), dim=0).to(here.device)
    counts = [
        sum(len(batch.targets) for batch in step.batches),
        sum(float(patch_loss_weight(model.pool_coverage(batch.coverage), settings)) for batch in step.batches),
        sum(len(batch.coverage) for batch in step.batches),
        sum(len(batch.pixels) for batch in step.batches),
        sum(batch.ids.numel() for batch in step.batches),
        len(step.problems),
    ]
    # In double precision, because float32 can't represent every integer beyond 2^24.
    tokens, weight, *rest = here.sum(torch.tensor(counts, dtype=torch.float64, device=here.device)).tolist()
    regions, images, positions, dropped = map(int, rest)
    return StepCounts(int(tokens), weight, regions, images, positions, dropped, labels)
