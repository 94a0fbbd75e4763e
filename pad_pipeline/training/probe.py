"""The paper's signs of failure, looked at while a training runs: Align, and whether patches say words."""

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
"""Of a token's coverage: the patches of a label are those that it covers by half."""


class Probe:
    """Sums over held-out images.

    Args:
        model: that is trained, between two steps.
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
        """Take a micro-batch and its projected tokens `[I, M, d]`."""
        if not len(part.pixels):
            return
        coverage = self.model.pooled(part.coverage.to(tokens.device))
        for number, own in enumerate(tokens):
            mine = part.image.to(tokens.device) == number
            nearest = nearest_word(own, self._words)
            self._seen += torch.tensor([float(self._readable[nearest.cpu()].sum()), len(own)], dtype=torch.float64)
            if mine.any():
                labels, which = part.embeds.to(tokens.device)[mine].float().unique(dim=0, return_inverse=True)
                shown = torch.zeros(len(labels), len(own), dtype=torch.bool, device=tokens.device)
                for label, mask in zip(which.tolist(), coverage[mine] >= HALF, strict=True):
                    shown[label] |= mask
                self._align.add(own, labels, shown)
                order = torch.randperm(len(own), generator=torch.Generator().manual_seed(len(own)))
                self._chance.add(own[order.to(own.device)], labels, shown)

    def result(self, here: Ranks) -> dict[str, Any]:
        """Over the images of all ranks: Align, the same with each image's patches shuffled, and the share of
        patches whose nearest word can be read. None where there was no region, or no image."""
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
