"""Compute the two losses, L_caption and L_patch.

Each loss is a sum of terms divided by a weight. A step of several micro-batches or ranks passes the weight of the whole
step, so that the losses of its parts add up to the same number for any split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pad_pipeline.errors import UserError
from pad_pipeline.training.patch_terms import ROWS, Regions, StepLabels, Words, pair_terms
from pad_pipeline.training.settings import PatchLossSettings

PerImage = Tensor | Sequence[Tensor] | Sequence[npt.NDArray[Any]]
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


class PatchDivisor(NamedTuple):
    """The numbers by which the sums of L_patch are divided, counted over a whole optimizer step."""

    whole: Tensor
    """A scalar. `average = "token"`: the sum of all weights; `"region"`: the number of regions in view; `"label"`: the
    number of labels in view."""
    labels: StepLabels | None = None
    """The step's labels; None unless `settings.needs_labels`."""

    @classmethod
    def of(cls, batches: Sequence[Regions], settings: PatchLossSettings) -> PatchDivisor:
        """Count the regions of some micro-batches."""
        labels = StepLabels.of(batches, settings.kind == "contrastive") if settings.needs_labels else None
        if settings.average == "label":
            assert labels is not None
            return cls((labels.weights > 0).sum().double(), labels)
        weights = torch.cat([regions.weights.sum(1) for regions in batches])
        return cls((weights if settings.average == "token" else weights > 0).double().sum(), labels)

    @classmethod
    def merged(cls, parts: Sequence[PatchDivisor], settings: PatchLossSettings) -> PatchDivisor:
        """Merge the divisors of several ranks."""
        known = [part.labels for part in parts if part.labels is not None]
        labels = StepLabels.merged(known) if known else None
        if labels is not None and settings.average == "label":
            return cls((labels.weights > 0).sum().double(), labels)
        return cls(torch.stack([part.whole for part in parts]).sum(), labels)

    def to(self, device: torch.device) -> PatchDivisor:
        """Return the divisor with all tensors on `device`."""
        return PatchDivisor(self.whole.to(device), self.labels.to(device) if self.labels else None)

    def of_regions(self, regions: Regions, settings: PatchLossSettings) -> Tensor:
        """Return the number by which each region's sum of weighted terms is divided, `[R]`."""
        if settings.average == "token":
            each = torch.ones_like(regions.image, dtype=torch.float32)
        elif settings.average == "region":
            each = regions.weights.sum(1)
        else:
            assert self.labels is not None
            each = self.labels.weights[self.labels.rows(regions.label)]
        return (each * self.whole).clamp_min(1e-12)


def patch_loss(
    tokens: Tensor, regions: Regions, settings: PatchLossSettings, divisor: PatchDivisor | None = None,
    words: Words | None = None,
) -> Tensor:  # fmt: skip
    """Return L_patch, the mean of a term that says how far each region's vision tokens are from the region's label.

    A pair of token p and region r has the weight w_rp, the coverage of p by r. With the projected token v, the label
    embedding e and the temperature T, the term of a pair is, by `kind`:

    - `cosine`: 1 - cos(v_p, e_r) (arXiv 2505.17316 says "maximize the cosine similarity").
    - `contrastive`: -log(exp(cos(v_p, e_r) / T) / sum_l exp(cos(v_p, e_l) / T)) over the distinct labels l of the step
      (SEA, arXiv 2408.11813). `true_labels` says what happens to other labels that are true of the token.
    - `words`: the mean over the label's tokens t of -log(exp(cos(v_p, E_t) / T) / sum_u exp(cos(v_p, E_u) / T)), with
      the LLM's input embeddings E of its whole vocabulary.
    - `head`: the mean over the label's tokens of their cross-entropy in the LLM's output at the token's place (FiVL,
      arXiv 2412.14672).

    The mean is, by `average`:

    - `token`: sum_rp w_rp term_rp / sum_rp w_rp.
    - `region`: the mean over regions r of sum_p w_rp term_rp / sum_p w_rp.
    - `label`: the mean over labels, with all regions of a label taken as one region.

    `compare = "mean"`: one term for each region, with the mean token sum_p w_rp v_p / sum_p w_rp instead of v_p.
    Regions outside the view, and those that are not `used`, do not count. Without any region the loss is 0.

    Args:
        tokens: `[B, P, d]`, the projected vision tokens.
        regions: all regions of the batch.
        settings: kind, comparison and average.
        divisor: of the whole step; by default of these regions.
        words: what the kinds `words` and `head` compare.
    """
    if divisor is None:
        divisor = PatchDivisor.of([regions], settings)
    if not len(regions.image):
        return tokens.sum() * 0.0  # depends on the tokens, so that their gradient is 0 and not missing
    weights = regions.weights  # [R, P]
    if settings.compare == "mean":
        # One matrix product with [R, B, P] weights avoids a copy of the tokens for each region. The sums are not
        # divided into means, because a cosine does not depend on the length.
        spread = F.one_hot(regions.image, len(tokens))[:, :, None] * weights[:, None]
        tokens = (spread.flatten(1) @ tokens.flatten(0, 1).float())[:, None]
        alone = regions._replace(image=torch.arange(len(weights), device=weights.device))
        terms = weights.sum(1, keepdim=True) * pair_terms(tokens, alone, settings, divisor.labels, words)
    else:
        terms = weights * pair_terms(tokens, regions, settings, divisor.labels, words)
    return (terms.sum(1) / divisor.of_regions(regions, settings)).sum().to(terms.dtype)


class PatchLoss(nn.Module):
    """L_patch for other trainers: `patch_loss` as a module without weights, which takes the regions image by image.

    Args:
        kind: `cosine` or `contrastive`, see `PatchLossSettings` for all settings. The other kinds need an LLM.
        compare: `token` or `mean`.
        average: `token`, `region` or `label`.
        temperature: the number by which the contrastive loss divides cosines.
        true_labels: `negative`, `neutral` or `positive`, for the contrastive loss.
    """

    def __init__(
        self, kind: Literal["cosine", "contrastive"] = "cosine", compare: Literal["token", "mean"] = "token",
        average: Literal["token", "region", "label"] = "token", temperature: float = 0.07,
        true_labels: Literal["negative", "neutral", "positive"] = "negative",
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = PatchLossSettings(
            kind=kind, compare=compare, average=average, temperature=temperature, true_labels=true_labels
        )
        if self.settings.needs_words:
            rule = "this kind of loss reads the words of an LLM, which this module does not have"
            raise UserError("kind", kind, rule, "use cosine or contrastive, or train with `pad train`")

    def forward(
        self, tokens: Tensor, embeds: PerImage, coverage: PerImage, divisor: PatchDivisor | None = None
    ) -> Tensor:
        """Return L_patch of B images, a scalar.

        Args:
            tokens: `[B, N, d]`, the projected vision tokens, row by row from the top left, without CLS.
            embeds: the label embeddings of each image's regions, `[R, d]`; or of all images, `[B, R, d]`, with rows of
                zeros where an image has fewer than R regions.
            coverage: how much of each patch belongs to each region, 0..255: `[R, N]` or `[R, grid, grid]` for each
                image, or with a first dimension B for all.
            divisor: of the whole step, if these images are a part of it: `divisor` of the step's regions.

        Raises:
            UserError: the shapes do not fit together.
        """
        with torch.autocast(tokens.device.type, enabled=False):  # a Trainer's autocast would round cosines to bfloat16
            return patch_loss(tokens, self.regions(tokens, embeds, coverage), self.settings, divisor)

    def divisor(self, tokens: Tensor, embeds: PerImage, coverage: PerImage) -> PatchDivisor:
        """Return the divisor of these images; arguments and errors are as in `forward`."""
        return PatchDivisor.of([self.regions(tokens, embeds, coverage)], self.settings)

    @staticmethod
    def regions(tokens: Tensor, embeds: PerImage, coverage: PerImage) -> Regions:
        """Return all regions of some images; arguments and errors are as in `forward`."""
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
        all_embeds, all_coverage, image = (torch.cat(part) for part in zip(*parts, strict=True))
        return Regions.of(all_embeds, all_coverage, image)


@torch.no_grad()
def mean_cosine(tokens: Tensor, regions: Regions) -> Tensor:
    """Return the sums of w_rp cos(v_p, e_r) and of w_rp over all pairs, float32 `[2]`; see `patch_loss`.

    The first sum divided by the second is the mean cosine, which is logged for every kind of loss.
    """
    if not len(regions.image):
        return tokens.new_zeros(2, dtype=torch.float32)
    weights = regions.coverage.float() / 255
    cosine = 1 - pair_terms(tokens, regions, PatchLossSettings(), None, None)
    return torch.stack([(weights * cosine).sum(), weights.sum()])
