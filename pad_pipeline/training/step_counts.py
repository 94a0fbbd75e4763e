"""Count the samples and tokens of an optimizer step over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pad_pipeline.training.batches import Batch, StepBatches
from pad_pipeline.training.losses import PatchDivisor
from pad_pipeline.training.model import Losses, MultimodalModel
from pad_pipeline.training.ranks import Ranks


class StepCounts(NamedTuple):
    """Counts over all ranks in one optimizer step."""

    supervised_tokens: int
    divisor: PatchDivisor
    """The divisor of L_patch, on this rank's device."""
    regions: int
    images: int
    positions: int
    """The number of token positions of all sequences, padding included."""
    dropped: int
    """The number of samples from which nothing can be learned."""
    regions_left_out: int
    """The number of regions that `largest` and `without` leave out of L_patch."""

    def losses(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Return the losses of a micro-batch, each divided by its weight in the whole step."""
        losses: Losses = model(batch, max(float(self.supervised_tokens), 1.0), self.divisor)
        return losses


def count_step(model: MultimodalModel, step: StepBatches, here: Ranks) -> StepCounts:
    """Count the samples and tokens of a step over all ranks. Some kinds of L_patch need the labels of all ranks too."""
    settings = model.settings.patch_loss
    of_rank = PatchDivisor.of([model.pooled(batch.regions) for batch in step.batches], settings)
    counts = [
        float(of_rank.whole),
        sum(len(batch.targets) for batch in step.batches),
        sum(int(batch.regions.used.sum()) for batch in step.batches),
        sum(len(batch.pixels) for batch in step.batches),
        sum(batch.ids.numel() for batch in step.batches),
        len(step.problems),
        step.left_out,
    ]
    # In double precision, because float32 can't represent every integer beyond 2^24.
    sums = here.sum(torch.tensor(counts, dtype=torch.float64, device=here.device)).tolist()
    whole, tokens, *rest = sums
    if settings.needs_labels:
        divisor = PatchDivisor.merged(here.gather(of_rank), settings)
    else:
        divisor = PatchDivisor(torch.tensor(whole, dtype=torch.float64))
    return StepCounts(int(tokens), divisor.to(here.device), *map(int, rest))
