"""Compare vision tokens with the labels of regions: the term of each pair of a region and a token in L_patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pad_pipeline.training.settings import PatchLossSettings

ROWS = 4096
"""The number of rows of logits in memory at a time: 0.5 GB in float32 for a vocabulary of 32,000."""
_NEVER = -1e6
"""The score of a label that is masked; its exponential is 0. With minus infinity, the gradient would be NaN where every
label is masked."""


class Regions(NamedTuple):
    """The R regions of a batch of images."""

    embeds: Tensor
    """float `[R, d]`: the label embedding of each region."""
    coverage: Tensor
    """`[R, P]`: how much of each token's patches belongs to each region, 0..255."""
    used: Tensor
    """bool `[R]`: whether L_patch takes the region. The labels of the others are true of their tokens all the same."""
    image: Tensor
    """int64 `[R]`: the row of the batch's images that each region belongs to."""
    label: Tensor
    """int64 `[R]`: a number that is the same for regions with the same label embedding, and for no others."""
    words: Tensor
    """int64 `[R, T]`: the label's tokens, filled up with -1. Only `kind = "words"` and `"head"` read them."""

    @classmethod
    def of(
        cls, embeds: Tensor, coverage: Tensor, image: Tensor, words: Tensor | None = None, used: Tensor | None = None
    ) -> Regions:
        """Number the labels by their embeddings. Without `words`, labels have no tokens; without `used`, L_patch takes
        all regions."""
        words = image.new_zeros(len(image), 0) if words is None else words
        used = torch.ones_like(image, dtype=torch.bool) if used is None else used
        return cls(embeds, coverage, used, image, label_numbers(embeds), words)

    @property
    def weights(self) -> Tensor:
        """The weights w_rp of L_patch, float32 `[R, P]`, 0..1; 0 for regions that it does not take."""
        return self.coverage.float() / 255 * self.used[:, None]

    def to(self, device: torch.device) -> Regions:
        """Return the regions with all tensors on `device`."""
        return Regions(*(part.to(device, non_blocking=True) for part in self))


def label_numbers(embeds: Tensor) -> Tensor:
    """Return a number for each label embedding `[R, d]`, int64 `[R]`, see `Regions.label`.

    It is a hash of the embedding's bits: their sum modulo 2^64, each with a random factor. All ranks compute the same
    number without communicating. Two embeddings share a number with a negligible probability (2^-48 at most).
    """
    bits = (embeds + 0.0).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[embeds.element_size()])  # 0 for -0
    factors = np.random.default_rng(0).integers(-(2**63), 2**63, embeds.shape[1]) | 1
    return (bits.long() * torch.from_numpy(factors).to(embeds.device)).sum(1)


class StepLabels(NamedTuple):
    """The distinct labels of an optimizer step, over all its micro-batches and ranks."""

    numbers: Tensor
    """int64 `[L]`, ascending, see `Regions.label`."""
    embeds: Tensor
    """`[L, d]`: the label embeddings."""
    weights: Tensor
    """float32 `[L]`: the sum of the weights of all pairs of each label."""

    @classmethod
    def of(cls, batches: Sequence[Regions], compared: bool = True) -> StepLabels:
        """Collect the labels of some regions; their embeddings only if they are `compared`."""
        embeds = torch.cat([regions.embeds if compared else regions.embeds[:, :0] for regions in batches])
        weights = torch.cat([regions.weights.sum(1) for regions in batches])
        return _distinct(torch.cat([regions.label for regions in batches]), embeds, weights)

    @classmethod
    def merged(cls, parts: Sequence[StepLabels]) -> StepLabels:
        """Merge the labels of several ranks."""
        return _distinct(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def to(self, device: torch.device) -> StepLabels:
        """Return the labels with all tensors on `device`."""
        return StepLabels(*(part.to(device, non_blocking=True) for part in self))

    def rows(self, label: Tensor) -> Tensor:
        """Return the row of each label of `Regions.label`, int64 `[R]`."""
        return torch.searchsorted(self.numbers, label)


def _distinct(numbers: Tensor, embeds: Tensor, weights: Tensor) -> StepLabels:
    distinct, row = torch.unique(numbers, return_inverse=True)
    of_label = embeds.new_zeros(len(distinct), embeds.shape[1]).index_copy_(0, row, embeds)
    return StepLabels(distinct, of_label, weights.new_zeros(len(distinct)).index_add_(0, row, weights))


class Words(NamedTuple):
    """What the losses over the LLM's vocabulary compare. The logit of token v at a place p is
    `queries[p] @ table[v] * scale[v]`."""

    queries: Tensor
    """`[B, P, d]`: one for each vision token."""
    targets: Tensor
    """`[R, d]`: the mean of `table[v] * scale[v]` over the tokens v that a region's tokens are trained toward."""
    table: Tensor
    """`[V, d]`: one row for each token of the vocabulary."""
    scale: Tensor | None
    """float32 `[V]`; None for 1."""


def word_means(table: Tensor, scale: Tensor | None, words: Tensor) -> Tensor:
    """Return the mean of `table[v] * scale[v]` over the tokens v of each label `[R, T]`, float32 `[R, d]`."""
    given = words >= 0
    ids = words.clamp_min(0)
    weights = given.float() / given.sum(1, keepdim=True).clamp_min(1)
    if scale is not None:
        weights = weights * scale[ids]
    return (table[ids].float() * weights[..., None]).sum(1)


def pair_terms(
    tokens: Tensor, regions: Regions, settings: PatchLossSettings, labels: StepLabels | None, words: Words | None
) -> Tensor:
    """Return the term of each region with each token of its image, `[R, P]`; see `losses.patch_loss`.

    Args:
        tokens: `[B, P, d]`, the projected vision tokens.
        regions: the regions.
        settings: kind, temperature and the treatment of a token's other true labels.
        labels: the labels of the step, for `kind = "contrastive"`.
        words: for the kinds `words` and `head`, which compare its queries instead of the tokens.
    """
    assert (words is not None) == settings.needs_words
    if words is not None:
        rounded = words.queries.to(words.table.dtype).float()  # as in the logits
        return _log_sum(words)[regions.image] - _with_own_image(rounded, words.targets, regions.image)
    vision = F.normalize(tokens.float(), dim=-1)
    cosine = _with_own_image(vision, F.normalize(regions.embeds.float(), dim=-1), regions.image)
    if settings.kind == "cosine":
        return 1 - cosine
    assert labels is not None
    own = cosine / settings.temperature
    scores = vision @ F.normalize(labels.embeds.float(), dim=-1).t() / settings.temperature  # [B, P, L]
    if settings.true_labels == "negative":
        return scores.logsumexp(-1)[regions.image] - own
    true = _true_labels(regions, labels, tokens.shape)
    if settings.true_labels == "positive":
        with_true = scores.masked_fill(~true, _NEVER).logsumexp(-1)
        return (scores.logsumexp(-1) - with_true)[regions.image]
    others = scores.masked_fill(true, _NEVER).logsumexp(-1)
    return torch.logaddexp(others[regions.image], own) - own


def _with_own_image(queries: Tensor, targets: Tensor, image: Tensor) -> Tensor:
    """Return the products of each target `[R, d]` with the queries `[B, P, d]` of its image, `[R, P]`.

    It compares every region with every image, [R, B, P], then selects the region's image. This takes far less memory
    than a copy of the queries for each region.
    """
    if queries.shape[1] == 1 and len(queries) == len(targets):  # a mean token for each region, in the order of regions
        return (queries[:, 0] * targets).sum(-1, keepdim=True)
    with_all = (targets @ queries.flatten(0, 1).t()).view(len(targets), *queries.shape[:2])
    return with_all[torch.arange(len(image), device=image.device), image]


def _true_labels(regions: Regions, labels: StepLabels, shape: torch.Size) -> Tensor:
    """Return which labels are true of each token, because a region with this label covers a part of it,
    bool `[B, P, L]`."""
    shown = torch.zeros(shape[0], len(labels.numbers), shape[1], device=regions.image.device)
    shown.index_put_((regions.image, labels.rows(regions.label)), (regions.coverage > 0).float(), accumulate=True)
    return shown.transpose(1, 2) > 0


def _log_sum(words: Words) -> Tensor:
    """Return the logarithm of the sum of the exponentials of all logits, `[B, P]`."""

    def of(rows: Tensor) -> Tensor:
        logits = (rows.to(words.table.dtype) @ words.table.t()).float()
        return (logits if words.scale is None else logits.mul_(words.scale)).logsumexp(-1)

    rows = words.queries.flatten(0, 1)
    if len(rows) <= ROWS:
        found = of(rows)
    else:  # the backward pass computes each piece's logits again, so that only one piece is in memory at a time
        found = torch.cat([checkpoint(of, piece, use_reentrant=False) for piece in torch.split(rows, ROWS)])
    return found.view(words.queries.shape[:2])
