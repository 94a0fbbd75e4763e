"""Compute the two losses, L_caption and L_patch.

Each loss is a sum of terms divided by a weight. A step that is computed in several micro-batches or by several ranks
passes the weight of the whole step, so that the parts add up to the same loss however the step is split.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pad_pipeline.training.settings import PatchLossSettings

ROWS = 4096
"""Number of rows of logits that are in memory at a time: 0.5 GB in float32 for a vocabulary of 32,000."""


def caption_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weight: float | None = None) -> Tensor:
    """Return L_caption, the cross-entropy of the supervised tokens, in nats.

    Args:
        hidden: `[N, d]`, the LLM's last hidden states at the positions that predict a supervised token.
        head: the LLM's output layer.
        targets: int64 `[N]`, the supervised tokens.
        weight: divisor of the sum; the number of targets by default.
    """

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), wanted, reduction="sum")

    weight = max(len(targets), 1) if weight is None else weight
    if len(targets) <= ROWS:
        return part(hidden, targets) / weight
    # Each piece's logits are computed again in the backward pass, so that one piece is in memory at a time.
    pieces = zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True)
    sums = [checkpoint(part, rows, wanted, use_reentrant=False) for rows, wanted in pieces]
    return torch.stack(sums).sum() / weight


def patch_loss_weight(coverage: Tensor, settings: PatchLossSettings) -> Tensor:
    """Return the divisor of `patch_loss`: the total weight of all pairs of patch and region where the average is over
    tokens, or the number of regions in view where it is over regions. `coverage` is `[R, P]`, 0..255."""
    selected = coverage.float().sum(1) / 255
    return selected.sum() if settings.average == "token" else (selected > 0).sum().float()


def patch_loss(
    tokens: Tensor, embeds: Tensor, coverage: Tensor, image: Tensor, settings: PatchLossSettings,
    weight: Tensor | None = None, labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return L_patch, the distance of the vision tokens that a region's mask selects from the region's label embedding.

    With w the weight of patch p for region r, v the projected token and e the averaged word embedding of the label, a
    pair's term is 1 - cos(v_p, e_r), or, contrastive, -log(exp(cos(v_p, e_r) / T) / sum_l exp(cos(v_p, e_l) / T)) over
    the distinct labels l of the step. The terms are averaged:
    `average = "token"`: sum_rp w_rp term_rp / sum_rp w_rp;
    `average = "region"`: mean over r of sum_p w_rp term_rp / sum_p w_rp.
    `compare = "mean"` has one term for each region, of its mean token sum_p w_rp v_p / sum_p w_rp instead of v_p.
    (arXiv 2505.17316 says "maximize the cosine similarity" and leaves weights and averages open.) Regions of which the
    view shows nothing do not count; where no region is left the loss is 0.

    Args:
        tokens: `[B, P, d]`, the projected vision tokens.
        embeds: `[R, d]`, the label embeddings of all regions of the batch.
        coverage: `[R, P]`, how much of each patch belongs to each region, 0..255.
        image: int64 `[R]`, the row of `tokens` that each region belongs to.
        settings: the choices that the paper leaves open.
        weight: divisor of the sum; `patch_loss_weight` of these regions by default.
        labels: `[L, d]`, the distinct label embeddings of the step, for the contrastive loss; those of `embeds` by
            default.
    """
    if weight is None:
        weight = patch_loss_weight(coverage, settings)
    if not len(image):
        return tokens.sum() * 0.0  # a part of the graph, so that the tokens' gradient is 0 and not missing
    weights = coverage.float() / 255  # [R, P]
    seen = weights.sum(1)
    if settings.compare == "mean":
        # One matrix product over [R, B, P] weights, so that no tokens are copied for each region. The sums are not
        # divided into means, because a cosine does not depend on their length.
        spread = F.one_hot(image, len(tokens))[:, :, None] * weights[:, None]
        means = spread.flatten(1) @ tokens.flatten(0, 1).float()
        terms = _terms(means[:, None], embeds, None, settings, labels)[:, 0]  # [R]
        per_region = terms * (seen if settings.average == "token" else (seen > 0))
    else:
        per_region = (weights * _terms(tokens, embeds, image, settings, labels)).sum(1)
        if settings.average == "region":
            per_region = per_region / seen.clamp_min(1e-12)
    return per_region.sum() / weight.clamp_min(1e-12)


def _terms(
    tokens: Tensor, embeds: Tensor, image: Tensor | None, settings: PatchLossSettings, labels: Tensor | None
) -> Tensor:
    """Return `[R, P]`, the loss term of each region and each token of the region's image.

    Where `image` is None, `tokens` is `[R, P, d]`: the tokens of each region.
    """
    vision = F.normalize(tokens.float(), dim=-1)
    regions = F.normalize(embeds.float(), dim=-1)
    if image is None:
        cosine = (vision * regions[:, None]).sum(-1)
    else:
        # Compare every region with every image at once, [R, B, P], then pick the region's own image: that takes far
        # less memory than a copy of the tokens for each region.
        every = (regions @ vision.flatten(0, 1).t()).view(len(regions), *tokens.shape[:2])
        cosine = every[torch.arange(len(image), device=image.device), image]
    if settings.kind == "cosine":
        return 1 - cosine
    distinct: Tensor = torch.unique(embeds, dim=0) if labels is None else labels
    candidates = F.normalize(distinct.float(), dim=-1)
    among = torch.logsumexp(vision @ candidates.t() / settings.temperature, dim=-1)  # [B or R, P]
    return (among if image is None else among[image]) - cosine / settings.temperature


@torch.no_grad()
def mean_cosine(tokens: Tensor, embeds: Tensor, coverage: Tensor, image: Tensor) -> Tensor:
    """Return float32 `[2]`: the sums of w cos(v_p, e_r) and of w over all pairs of patch and region.

    Their quotient is the mean cosine, which is logged whatever the loss is.
    """
    if not len(image):
        return tokens.new_zeros(2, dtype=torch.float32)
    weights = coverage.float() / 255
    cosine = 1 - _terms(tokens, embeds, image, PatchLossSettings(), None)
    return torch.stack([(weights * cosine).sum(), weights.sum()])
