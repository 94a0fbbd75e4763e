"""Measure the losses, and the paper's signs of failure, on the samples that are not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from pad_pipeline.measures.align import Align
from pad_pipeline.measures.vocabulary import Vocabulary, nearest_word
from pad_pipeline.training.batches import Batch, steps
from pad_pipeline.training.examples import Examples
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.sums import count_step


@torch.no_grad()
def measure_held_out(
    model: MultimodalModel, examples: Examples, numbers: npt.NDArray[np.int64], batch_size: int, here: Ranks
) -> dict[str, Any]:
    """Measure the samples `numbers`, int64 `[N]`; all ranks must call it. The model is left in evaluation mode.

    Returns:
        Fields of a log entry: both losses, their sum with `beta_end` as the weight of L_patch, and those of `Probe`.
        L_caption is None where the LLM is not run.
    """
    settings = model.settings
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    probe = Probe(model)
    model.eval()
    sums, weights = np.zeros(2), np.zeros(2)  # of L_caption and L_patch
    for step in steps(examples, batches.__getitem__, settings, range(len(batches)), here.rank, here.world):
        counts = count_step(model, step, here)
        means = torch.zeros(2, device=here.device)
        for part in step.parts:
            losses = counts.losses(model, part.to(here.device))
            means += torch.stack([losses.caption, losses.patch])
            probe.add(part, losses.tokens)
        # A step's losses are means, so its sums are these times the weights; the last step has fewer samples.
        weight = np.array([counts.supervised_tokens, counts.patch_weight])
        sums += here.sum(means).tolist() * weight
        weights += weight
    caption, patch = (sums / np.maximum(weights, [1, 1e-12])).tolist()
    return {
        "held_out_caption_loss": caption if settings.runs_llm else None,
        "held_out_patch_loss": patch,
        "held_out_loss": settings.caption_weight * caption + settings.beta_end * patch,
    } | probe.result(here)


_HALF = 127.5
"""Coverage from which on a token counts as showing a label: half of 255."""


class Probe:
    """Sums of Align (the paper's measure) and of readable words over held-out images, of a model between two steps."""

    def __init__(self, model: MultimodalModel) -> None:
        self.model = model
        words = model.llm.get_input_embeddings().weight.detach()
        words = words.full_tensor() if isinstance(words, DTensor) else words
        vocabulary = Vocabulary(model.tokenizer, len(words), {})
        ids = vocabulary.token_ids("all")
        self._words = F.normalize(words[ids.to(words.device)].float(), dim=-1)
        self._readable = vocabulary.readable[ids]
        self._align, self._chance = Align(), Align()
        self._seen = torch.zeros(2, dtype=torch.float64)

    def add(self, part: Batch, tokens: Tensor) -> None:
        """Add a micro-batch and its projected tokens `[I, M, d]`."""
        if not len(part.pixels):
            return
        coverage = self.model.pooled(part.coverage.to(tokens.device))
        for number, image_tokens in enumerate(tokens):
            readable = float(self._readable[nearest_word(image_tokens, self._words).cpu()].sum())
            self._seen += torch.tensor([readable, len(image_tokens)], dtype=torch.float64)
            # Compare the tokens with the image's labels. Regions of one label count as one.
            of_image = part.image.to(tokens.device) == number
            if of_image.any():
                embeds = part.embeds.to(tokens.device)[of_image].float()
                labels, which = torch.unique(embeds, dim=0, return_inverse=True)
                shown = torch.zeros(len(labels), len(image_tokens), dtype=torch.bool, device=tokens.device)
                for label, mask in zip(which.tolist(), coverage[of_image] >= _HALF, strict=True):
                    shown[label] |= mask
                self._align.add(image_tokens, labels, shown)
                shuffler = torch.Generator().manual_seed(len(image_tokens))
                order = torch.randperm(len(image_tokens), generator=shuffler)
                self._chance.add(image_tokens[order.to(image_tokens.device)], labels, shown)

    def result(self, here: Ranks) -> dict[str, Any]:
        """Return Align, Align with each image's patches shuffled, and the share of patches whose nearest word can be
        read, over the images of all ranks; None where no image had a region, or where there was no image."""
        pairs_here = torch.tensor([float(self._align.pairs)]).double()
        sums = torch.stack([self._align.sums, self._chance.sums]).flatten().cpu()
        sums = here.sum(torch.cat([sums, pairs_here, self._seen]).to(here.device, torch.float32))
        pairs, readable, count = sums[-3:].tolist()
        align, chance = (sums[:-3].view(2, -1).amax(1) / max(pairs, 1.0)).tolist()
        return {
            "held_out_align": align if pairs else None,
            "held_out_align_shuffled": chance if pairs else None,
            "held_out_readable": readable / count if count else None,
        }
