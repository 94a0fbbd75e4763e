"""Measure the paper's signs of failure while a training runs: Align, and the share of patches that say a word."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from pad_pipeline.measures.align import Align
from pad_pipeline.measures.vocabulary import Vocabulary, nearest_word
from pad_pipeline.training.batches import Batch
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.ranks import Ranks

HALF = 127.5
"""Coverage from which on a token counts as showing a label: half of 255."""


class Probe:
    """Sums of Align and of readable words over held-out images.

    Args:
        model: the model that is trained, between two steps.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self.model = model
        words = model.llm.get_input_embeddings().weight.detach()
        words = words.full_tensor() if isinstance(words, DTensor) else words
        vocabulary = Vocabulary(model.tokenizer, len(words), {})
        ids = vocabulary.atoms("all")
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
            # Count the tokens whose nearest word can be read.
            nearest = nearest_word(image_tokens, self._words)
            readable = float(self._readable[nearest.cpu()].sum())
            self._seen += torch.tensor([readable, len(image_tokens)], dtype=torch.float64)
            # Compare the tokens with the image's labels. Regions of one label count as one.
            of_image = part.image.to(tokens.device) == number
            if of_image.any():
                embeds = part.embeds.to(tokens.device)[of_image].float()
                labels, which = torch.unique(embeds, dim=0, return_inverse=True)
                shown = torch.zeros(len(labels), len(image_tokens), dtype=torch.bool, device=tokens.device)
                for label, mask in zip(which.tolist(), coverage[of_image] >= HALF, strict=True):
                    shown[label] |= mask
                self._align.add(image_tokens, labels, shown)
                shuffler = torch.Generator().manual_seed(len(image_tokens))
                order = torch.randperm(len(image_tokens), generator=shuffler)
                self._chance.add(image_tokens[order.to(image_tokens.device)], labels, shown)

    def result(self, here: Ranks) -> dict[str, Any]:
        """Return the measures over the images of all ranks, as fields of a log entry.

        They are Align, Align with each image's patches shuffled, and the share of patches whose nearest word can be
        read; None where no image had a region, or where there was no image.
        """
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
