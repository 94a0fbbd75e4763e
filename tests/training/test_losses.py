"""L_patch against a reference written with NumPy and loops, for each of its settings, on random masks."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from pad_pipeline.geometry import select_patches
from pad_pipeline.training.losses import mean_cosine, patch_loss, patch_loss_weight
from pad_pipeline.training.settings import PatchLossSettings, TrainSettings

KINDS = list(product(("cosine", "contrastive"), ("token", "mean"), ("token", "region")))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def reference(
    tokens: np.ndarray, embeds: np.ndarray, coverage: np.ndarray, image: np.ndarray, settings: PatchLossSettings
) -> float:
    """Compute L_patch pair by pair, as the docstring of `patch_loss` defines it."""
    labels = np.unique(embeds, axis=0)

    def term(vision: np.ndarray, own: np.ndarray) -> float:
        if settings.kind == "cosine":
            return 1 - cosine(vision, own)
        scores = np.array([cosine(vision, label) for label in labels]) / settings.temperature
        return float(np.log(np.exp(scores).sum()) - cosine(vision, own) / settings.temperature)

    total = weight = 0.0
    for embed, covered, place in zip(embeds, coverage / 255, image, strict=True):
        seen = covered.sum()
        if not seen:
            continue
        if settings.compare == "mean":
            mean = sum(share * token for share, token in zip(covered, tokens[place], strict=True)) / seen
            value = term(mean, embed)
        else:
            value = sum(share * term(token, embed) for share, token in zip(covered, tokens[place], strict=True)) / seen
        share = seen if settings.average == "token" else 1.0
        total, weight = total + share * value, weight + share
    return total / weight if weight else 0.0


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw four images of 3 x 3 patches: one without a region, some regions out of view, some labels twice."""
    chance = np.random.default_rng(seed)
    tokens = torch.from_numpy(chance.standard_normal((4, 9, 5)).astype(np.float32))
    known = chance.standard_normal((4, 5)).astype(np.float16)
    image = torch.tensor([0, 0, 0, 1, 3, 3])
    embeds = torch.from_numpy(known[chance.integers(0, 4, 6)])
    coverage = chance.integers(0, 256, (6, 9)) * (chance.random((6, 9)) < 0.5)
    coverage[4] = 0
    return tokens, embeds, torch.from_numpy(coverage.astype(np.uint8)), image


@pytest.mark.parametrize(("kind", "compare", "average"), KINDS)
@pytest.mark.parametrize("rule", ["soft", "any", "half", "argmax"])
def test_patch_loss_is_what_its_formula_says(kind: Any, compare: Any, average: Any, rule: Any) -> None:
    """To 1e-5, whole and in parts that know weight and labels of the whole, gradients too. Catches a region that
    meets another image's tokens, weights that are counted twice, and parts that don't add up."""
    settings = PatchLossSettings(kind=kind, compare=compare, average=average, temperature=0.2)
    for seed in range(5):
        tokens, embeds, stored, image = drawn(seed)
        coverage = torch.from_numpy(select_patches(stored.numpy().reshape(-1, 3, 3), rule).reshape(-1, 9))
        tokens.requires_grad_()
        found = patch_loss(tokens, embeds, coverage, image, settings)
        plain = [part.detach().double().numpy() for part in (tokens, embeds, coverage)]
        expected = reference(*plain, image.numpy(), settings)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected, abs=1e-5)
        (gradient,) = torch.autograd.grad(found, tokens)

        weight, labels = patch_loss_weight(coverage, settings), embeds.unique(dim=0)
        sums, parts = 0.0, torch.zeros_like(tokens)
        for first, last in ((0, 1), (1, 2), (2, 4)):
            mine = (image >= first) & (image < last)
            part = tokens[first:last].detach().requires_grad_()
            loss = patch_loss(part, embeds[mine], coverage[mine], image[mine] - first, settings, weight, labels)
            (parts[first:last],) = torch.autograd.grad(loss, part)
            sums += loss.item()
        assert sums == pytest.approx(expected, abs=1e-5)
        assert torch.allclose(parts, gradient, atol=1e-6)


def test_aligned_tokens_cost_nothing_and_opposite_ones_most() -> None:
    """1 - cosine is 0 where each token is its label's direction, at any length, and 2 at the opposite."""
    _, embeds, coverage, image = drawn(0)
    embeds = embeds[:1].repeat(6, 1)
    tokens = (embeds[0] * 7).float().expand(4, 9, 5)
    for compare in ("token", "mean"):
        settings = PatchLossSettings(compare=compare)  # type: ignore[arg-type]
        assert patch_loss(tokens, embeds, coverage, image, settings).item() == pytest.approx(0, abs=1e-6)
        assert patch_loss(-tokens, embeds, coverage, image, settings).item() == pytest.approx(2, abs=1e-6)
    total, weight = mean_cosine(tokens, embeds, coverage, image).tolist()
    assert total / weight == pytest.approx(1, abs=1e-6)


def test_beta_goes_as_its_schedule_says() -> None:
    """After half of the steps beta is at half, on a line and on a half cosine; after a quarter the two differ."""
    for schedule, quarter in (("linear", 1.25), ("cosine", 5 * (1 - np.cos(np.pi / 4)) / 2), ("constant", 5)):
        settings = TrainSettings(beta_schedule=schedule)  # type: ignore[arg-type]
        ends = [0, 2.5, 5] if schedule != "constant" else [5, 5, 5]
        assert [settings.beta(step, 9) for step in (0, 4, 8)] == pytest.approx(ends)
        assert settings.beta(2, 9) == pytest.approx(quarter)
