"""Measure the losses and the alignment on held-out samples, which are not trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pad_pipeline.measures.align import Align
from pad_pipeline.measures.reading import LinearReader
from pad_pipeline.measures.vectors import WordVectors
from pad_pipeline.measures.vocabulary import Vocabulary
from pad_pipeline.training.batches import Batch, load_steps
from pad_pipeline.training.examples import Examples
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.step_counts import count_step


@torch.no_grad()
def measure_held_out(
    model: MultimodalModel, examples: Examples, numbers: npt.NDArray[np.int64], batch_size: int, here: Ranks
) -> dict[str, Any]:
    """Measure the samples with these numbers, int64 `[N]`. All ranks must call it. The model stays in evaluation mode.

    Returns:
        Fields of a log entry: both losses (L_caption is None if the LLM is not run), their sum with `beta_end` as the
        weight of L_patch, and the fields of `AlignmentMeter`.
    """
    settings = model.settings
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    alignment = AlignmentMeter(model, here)
    model.eval()
    sums, weights = np.zeros(2), np.zeros(2)  # of L_caption and L_patch
    for step in load_steps(examples, batches.__getitem__, range(len(batches)), here.rank, here.world):
        counts = count_step(model, step, here)
        means = torch.zeros(2, device=here.device)
        for batch in step.batches:
            losses = counts.losses(model, batch.to(here.device))
            means += torch.stack([losses.caption, losses.patch])
            alignment.add(batch, losses.tokens)
        # Turn the step's means back into sums, because the last step has fewer samples.
        weight = np.array([counts.supervised_tokens, float(counts.divisor.whole)])
        sums += here.sum(means).tolist() * weight
        weights += weight
    caption, patch = (sums / np.maximum(weights, [1, 1e-12])).tolist()
    return {
        "held_out_caption_loss": caption if settings.runs_llm else None,
        "held_out_patch_loss": patch,
        "held_out_loss": settings.caption_weight * caption + settings.beta_end * patch,
    } | alignment.result(here)


class AlignmentMeter:
    """Measures on held-out images the paper's Align, the share of vision tokens whose nearest word is readable, and
    how well a linear function reads a token's place."""

    def __init__(self, model: MultimodalModel, here: Ranks) -> None:
        self.model, self._place = model, LinearReader(total=here.sum)
        words = model.llm.get_input_embeddings().weight.detach()
        words = words.full_tensor() if isinstance(words, DTensor) else words
        vocabulary = Vocabulary(model.tokenizer, len(words), {})
        ids = vocabulary.token_ids("all")
        self._vectors = WordVectors(words, ids)
        self._readable = vocabulary.readable[ids].to(words.device)
        self._readable_by_chance = vocabulary.readable_by_chance(ids)
        self._align, self._chance = Align(), Align()
        self._readable_sum, self._tokens = torch.zeros((), dtype=torch.float64, device=words.device), 0

    def add(self, batch: Batch, tokens: Tensor) -> None:
        """Add a micro-batch and its projected tokens `[I, M, d]`."""
        if not len(batch.pixels):
            return
        regions = self.model.pooled(batch.regions.to(tokens.device))
        for number, image_tokens in enumerate(tokens):
            self._place.add(str(self._tokens), image_tokens)
            self._readable_sum += self._readable[self._vectors.nearest(image_tokens)].sum()
            self._tokens += len(image_tokens)
            # Compare the tokens with the image's labels. Regions of one label count as one.
            of_image = regions.image == number
            if of_image.any():
                embeds = regions.embeds[of_image].float()
                labels, which = torch.unique(embeds, dim=0, return_inverse=True)
                shown = torch.zeros(len(labels), len(image_tokens), dtype=torch.bool, device=tokens.device)
                half_covered = regions.coverage[of_image] >= 127.5
                for label, mask in zip(which.tolist(), half_covered, strict=True):
                    shown[label] |= mask
                self._align.add(image_tokens, labels, shown)
                shuffler = torch.Generator().manual_seed(len(image_tokens))
                order = torch.randperm(len(image_tokens), generator=shuffler)
                self._chance.add(image_tokens[order.to(image_tokens.device)], labels, shown)

    def result(self, here: Ranks) -> dict[str, Any]:
        """Return Align, Align with shuffled tokens as a baseline, the share of tokens whose nearest word is readable,
        and this share by chance (`Vocabulary.readable_by_chance`), and the R2 of row and column (`Reading`), over the
        images of all ranks. A number is None if there was nothing to measure."""
        counts_here = torch.tensor([self._align.pairs, self._readable_sum, self._tokens]).double()
        sums = torch.stack([self._align.sums, self._chance.sums]).flatten().cpu()
        sums = here.sum(torch.cat([sums, counts_here]).to(here.device, torch.float32))
        pairs, readable, count = sums[-3:].tolist()
        place = self._place.result(self.model.width, here.device)
        align, chance = (sums[:-3].view(2, -1).amax(1) / max(pairs, 1.0)).tolist()
        return {
            "held_out_align": align if pairs else None,
            "held_out_align_shuffled": chance if pairs else None,
            "held_out_readable": readable / count if count else None,
            "held_out_readable_by_chance": self._readable_by_chance,
            "held_out_row": None if math.isnan(place.row) else place.row,
            "held_out_column": None if math.isnan(place.column) else place.column,
        }
