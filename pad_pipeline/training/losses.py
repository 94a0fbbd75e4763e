"""Compute the two losses, L_caption and L_patch.

Each loss is a sum of terms divided by a weight. A step of several micro-batches or ranks passes the weight of the whole
step, so that the losses of its parts add up to the same number for any split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pad_pipeline.errors import UserError
from pad_pipeline.training.settings import PatchLossSettings

ROWS = 4096
"""The number of rows of logits in memory at a time: 0.5 GB in float32 for a vocabulary of 32,000."""
Regions = Tensor | Sequence[Tensor] | Sequence[npt.NDArray[Any]]
"""Values of the regions of each image: one tensor or array for each image, or one tensor `[B, R, ...]` for all."""


def caption_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weight: float | None = None) -> Tensor:
    """Return L_caption, the cross-entropy of the supervised tokens, in nats.

    Args:
        hidden: `[N, d]`, the LLM's last hidden states at the positions that predict a supervised token.
        head: the LLM's output layer.
        targets: int64 `[N]`, the supervised tokens.
        weight: divisor of the sum; by default the number of targets.
    """

    def sum_of(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), targets, reduction="sum")

    weight = max(len(targets), 1) if weight is None else weight
    if len(targets) <= ROWS:
        return sum_of(hidden, targets) / weight
    # The backward pass computes each piece's logits again, so that only one piece is in memory at a time.
    pieces = zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True)
    sums = [checkpoint(sum_of, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(sums).sum() / weight


def patch_loss_weight(coverage: Tensor, settings: PatchLossSettings) -> Tensor:
    """Return the divisor of `patch_loss` for the regions with `coverage` `[R, P]`, 0..255.

    It is the sum of all weights for `average = "token"`, and the number of regions in view for `average = "region"`.
    """
    region_weights = coverage.float().sum(1) / 255
    return region_weights.sum() if settings.average == "token" else (region_weights > 0).sum().float()


def patch_loss(
    tokens: Tensor, embeds: Tensor, coverage: Tensor, image: Tensor, settings: PatchLossSettings,
    weight: Tensor | None = None, labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return L_patch, the mean distance between the vision tokens of each region and the region's label embedding.

    A pair of token p and region r has the weight w_rp, the patch's coverage. With the projected token v and the label
    embedding e, the pair's term is 1 - cos(v_p, e_r). For `kind = "contrastive"`, the term is
    -log(exp(cos(v_p, e_r) / T) / sum_l exp(cos(v_p, e_l) / T)) over the distinct labels l of the step.
    `average = "token"`: sum_rp w_rp term_rp / sum_rp w_rp.
    `average = "region"`: mean over r of sum_p w_rp term_rp / sum_p w_rp.
    `compare = "mean"`: one term for each region, with the mean token sum_p w_rp v_p / sum_p w_rp instead of v_p.
    (arXiv 2505.17316 says "maximize the cosine similarity" and leaves weights and averages open.) Regions outside the
    view do not count. Without any region the loss is 0.

    Args:
        tokens: `[B, P, d]`, the projected vision tokens.
        embeds: `[R, d]`, the label embeddings of all regions of the batch.
        coverage: `[R, P]`, how much of each patch belongs to each region, 0..255.
        image: int64 `[R]`, the row of `tokens` that each region belongs to.
        settings: kind, comparison and average.
        weight: divisor of the sum; by default `patch_loss_weight` of these regions.
        labels: `[L, d]`, the distinct label embeddings of the step, for the contrastive loss; by default the distinct
            rows of `embeds`.
    """
    if weight is None:
        weight = patch_loss_weight(coverage, settings)
    if not len(image):
        return tokens.sum() * 0.0  # depends on the tokens, so that their gradient is 0 and not missing
    weights = coverage.float() / 255  # [R, P]
    region_weights = weights.sum(1)
    if settings.compare == "mean":
        # One matrix product with [R, B, P] weights avoids a copy of the tokens for each region. The sums are not
        # divided into means, because a cosine does not depend on the length.
        spread = F.one_hot(image, len(tokens))[:, :, None] * weights[:, None]
        means = spread.flatten(1) @ tokens.flatten(0, 1).float()
        terms = _terms(means[:, None], embeds, None, settings, labels)[:, 0]  # [R]
        per_region = terms * (region_weights if settings.average == "token" else (region_weights > 0))
    else:
        per_region = (weights * _terms(tokens, embeds, image, settings, labels)).sum(1)
        if settings.average == "region":
            per_region = per_region / region_weights.clamp_min(1e-12)
    return per_region.sum() / weight.clamp_min(1e-12)


def _terms(
    tokens: Tensor, embeds: Tensor, image: Tensor | None, settings: PatchLossSettings, labels: Tensor | None
) -> Tensor:
    """Return the loss term of each region and each token of the region's image, `[R, P]`.

    If `image` is None, `tokens` has the shape `[R, P, d]`: the tokens of each region.
    """
    vision = F.normalize(tokens.float(), dim=-1)
    regions = F.normalize(embeds.float(), dim=-1)
    if image is None:
        cosine = (vision * regions[:, None]).sum(-1)
    else:
        # Compare every region with every image, [R, B, P], then select the region's image. This takes far less memory
        # than a copy of the tokens for each region.
        with_all = (regions @ vision.flatten(0, 1).t()).view(len(regions), *tokens.shape[:2])
        cosine = with_all[torch.arange(len(image), device=image.device), image]
    if settings.kind == "cosine":
        return 1 - cosine
    distinct: Tensor = torch.unique(embeds, dim=0) if labels is None else labels
    candidates = F.normalize(distinct.float(), dim=-1)
    normalizer = torch.logsumexp(vision @ candidates.t() / settings.temperature, dim=-1)  # [B or R, P]
    return (normalizer if image is None else normalizer[image]) - cosine / settings.temperature


class PatchLoss(nn.Module):
    """L_patch for other trainers: `patch_loss` as a module without weights, which takes the regions image by image.

    Args:
        kind: `cosine` or `contrastive`, see `PatchLossSettings` for all four.
        compare: `token` or `mean`.
        average: `token` or `region`.
        temperature: the number by which the contrastive loss divides cosines.
    """

    def __init__(
        self, kind: Literal["cosine", "contrastive"] = "cosine", compare: Literal["token", "mean"] = "token",
        average: Literal["token", "region"] = "token", temperature: float = 0.07,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = PatchLossSettings(kind=kind, compare=compare, average=average, temperature=temperature)

    def forward(
        self, tokens: Tensor, embeds: Regions, coverage: Regions, weight: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return L_patch of B images, a scalar.

        Args:
            tokens: `[B, N, d]`, the projected vision tokens, row by row from the top left, without CLS.
            embeds: the label embeddings of each image's regions, `[R, d]`; or of all images, `[B, R, d]`, with rows of
                zeros where an image has fewer than R regions.
            coverage: how much of each patch belongs to each region, 0..255: `[R, N]` or `[R, grid, grid]` for each
                image, or with a first dimension B for all.
            weight: the divisor, see `patch_loss`.
            labels: the distinct label embeddings, see `patch_loss`.

        Raises:
            UserError: the shapes do not fit together.
        """
        if not len(tokens) == len(embeds) == len(coverage):
            rule = f"`tokens` has {len(tokens)} images, and `coverage` has {len(coverage)}"
            raise UserError("embeds", f"{len(embeds)} images", rule, "give the regions of each image")
        parts = []
        for number, of_image in enumerate(zip(embeds, coverage, strict=True)):
            own, patches = (torch.as_tensor(part, device=tokens.device).flatten(1) for part in of_image)
            shapes = [(len(own), width) for width in (tokens.shape[2], tokens.shape[1])]
            if [own.shape, patches.shape] != shapes:
                rule = f"its coverage is {list(patches.shape)}, and its tokens are {list(tokens.shape[1:])}"
                remedy = "use shards for this tower, view and LLM, and tokens without CLS"
                raise UserError("embeds", f"{list(own.shape)} in image {number}", rule, remedy)
            if isinstance(embeds, Tensor):
                kept = own.any(1)
                own, patches = own[kept], patches[kept]
            parts.append((own, patches, torch.full((len(own),), number, device=tokens.device)))
        with torch.autocast(tokens.device.type, enabled=False):  # a Trainer's autocast would round cosines to bfloat16
            all_embeds, all_coverage, image = (torch.cat(part) for part in zip(*parts, strict=True))
            return patch_loss(tokens, all_embeds, all_coverage, image, self.settings, weight, labels)


@torch.no_grad()
def mean_cosine(tokens: Tensor, embeds: Tensor, coverage: Tensor, image: Tensor) -> Tensor:
    """Return the sums of w_rp cos(v_p, e_r) and of w_rp over all pairs, float32 `[2]`; see `patch_loss`.

    The first sum divided by the second is the mean cosine, which is logged for every kind of loss.
    """
    if not len(image):
        return tokens.new_zeros(2, dtype=torch.float32)
    weights = coverage.float() / 255
    cosine = 1 - _terms(tokens, embeds, image, PatchLossSettings(), None)
    return torch.stack([(weights * cosine).sum(), weights.sum()])
