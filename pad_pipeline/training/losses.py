"""The two losses of stage 1. Each is a sum over its terms divided by their weight; a step that is computed in parts
gives the weight of the whole step, so that any split of a batch adds up to the same loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.training.settings import PatchLossSettings


def caption_loss(logits: Tensor, targets: Tensor, weight: float | None = None) -> Tensor:
    """Cross-entropy of the supervised tokens, in nats.

    Args:
        logits: `[N, vocabulary]`, at the positions that predict a supervised token.
        targets: `[N]` token ids.
        weight: what the sum is divided by; the number of targets by default.
    """
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / (len(targets) if weight is None else weight)


def patch_loss_weight(coverage: Tensor, settings: PatchLossSettings) -> Tensor:
    """What `patch_loss` divides by: the weight of all pairs of patch and region, or the number of regions in view."""
    selected = coverage.float().sum(1) / 255
    return selected.sum() if settings.average == "token" else (selected > 0).sum().float()


def patch_loss(
    tokens: Tensor,
    embeds: Tensor,
    coverage: Tensor,
    image: Tensor,
    settings: PatchLossSettings,
    weight: Tensor | None = None,
) -> Tensor:
    """L_patch: 1 - cosine between each vision token that a region's mask selects and the region's label embedding.

    With w the weight of patch p for region r, v the projected token and e the averaged word embedding of the label:
    `average = "token"`: sum_rp w_rp (1 - cos(v_p, e_r)) / sum_rp w_rp;
    `average = "region"`: mean over r of sum_p w_rp (1 - cos(v_p, e_r)) / sum_p w_rp.
    (arXiv 2505.17316 says "maximise the cosine similarity" and leaves weights and averages open.) Regions of which the
    view shows nothing do not count; where none is left the loss is 0.

    Args:
        tokens: `[B, P, d]`, projected.
        embeds: `[R, d]`, of all regions of the batch.
        coverage: uint8 `[R, P]`, how much each patch belongs to each region, of 255.
        image: `[R]`, the row of `tokens` that each region belongs to.
        settings: the average.
        weight: what the sum is divided by; `patch_loss_weight` of these regions by default.
    """
    weights = coverage.float() / 255  # [R, P]
    regions, vision = F.normalize(embeds.float(), dim=-1), F.normalize(tokens.float(), dim=-1)
    # Every region against every image at once, [R, B, P], and then its own: far smaller than a copy of the tokens for
    # each region would be.
    cosine = (regions @ vision.flatten(0, 1).t()).view(len(regions), *tokens.shape[:2])[torch.arange(len(image)), image]
    per_region = (weights * (1 - cosine)).sum(1)
    if settings.average == "region":
        per_region = per_region / weights.sum(1).clamp_min(1e-12)
    if weight is None:
        weight = patch_loss_weight(coverage, settings)
    return per_region.sum() / weight.clamp_min(1e-12)
