"""L_patch against a reference written with NumPy and loops, for each of its settings, on random masks."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import select_patches
from pad_pipeline.training import patch_terms
from pad_pipeline.training.losses import PatchDivisor, PatchLoss, mean_cosine, patch_loss
from pad_pipeline.training.patch_terms import Regions, Words, word_means
from pad_pipeline.training.settings import PatchLossSettings, TrainSettings

SETTINGS = [
    PatchLossSettings(kind=kind, compare=compare, average=average, true_labels=true_labels, temperature=0.2)  # type: ignore[arg-type]
    for kind, compare, average, true_labels in product(
        ("cosine", "contrastive", "words", "head"), ("token", "mean"), ("token", "region", "label"),
        ("negative", "neutral", "positive"),
    )
    if (kind == "contrastive" or true_labels == "negative")
    and (compare == "token" or (kind in ("cosine", "contrastive") and true_labels == "negative"))
]  # fmt: skip
IDS = ["-".join([one.kind, one.compare, one.average, one.true_labels]) for one in SETTINGS]


class Drawn(NamedTuple):
    """Tokens and regions of four images, and an LLM's table of 11 words."""

    tokens: torch.Tensor
    regions: Regions
    table: torch.Tensor
    queries: torch.Tensor
    """What the LLM puts out at the tokens."""

    def words(self, settings: PatchLossSettings, part: slice = slice(None)) -> Words | None:
        """As `MultimodalModel` gives them, of the images of `part`."""
        if not settings.needs_words:
            return None
        scale, queries = None, self.queries[part]
        if settings.kind == "words":
            scale = 1 / (self.table.norm(dim=1) * settings.temperature)
            queries = torch.nn.functional.normalize(self.tokens[part], dim=-1)
        mine = torch.isin(self.regions.image, torch.arange(4)[part])
        return Words(queries, word_means(self.table, scale, self.regions.words[mine]), self.table, scale)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def reference(drawn: Drawn, coverage: np.ndarray, settings: PatchLossSettings) -> float:
    """Compute L_patch pair by pair, as the docstring of `patch_loss` defines it."""
    tokens, queries, table = (part.detach().double().numpy() for part in (drawn.tokens, drawn.queries, drawn.table))
    embeds, image = drawn.regions.embeds.double().numpy(), drawn.regions.image.numpy()
    labels, label = np.unique(embeds, axis=0, return_inverse=True)
    label = label.reshape(-1)

    def term(vision: np.ndarray, region: int, place: int | None) -> float:
        """Of a token, or of the mean token (without `place`)."""
        if settings.kind == "cosine":
            return 1 - cosine(vision, embeds[region])
        if settings.kind == "contrastive":
            scores = np.exp([cosine(vision, one) / settings.temperature for one in labels])
            here = (image == image[region]) & (coverage[:, place] > 0) if place is not None else image < 0
            others = np.isin(np.arange(len(labels)), label[here]) & (np.arange(len(labels)) != label[region])
            right = scores[label[region]] + (scores[others].sum() if settings.true_labels == "positive" else 0)
            left_out = scores[others].sum() if settings.true_labels == "neutral" else 0
            return float(-np.log(right / (scores.sum() - left_out)))
        if settings.kind == "words":
            logits = np.array([cosine(vision, word) / settings.temperature for word in table])
        else:
            logits = table @ queries[image[region], place]
        wanted = [token for token in drawn.regions.words[region].tolist() if token >= 0]
        return float(np.log(np.exp(logits).sum()) - np.mean(logits[wanted]))

    of_group: dict[int, list[float]] = {}  # the sums of weighted terms and of weights
    for region, covered in enumerate(coverage / 255 * drawn.regions.used.numpy()[:, None]):
        seen = covered.sum()
        if not seen:
            continue
        own = tokens[image[region]]
        if settings.compare == "mean":
            value = seen * term((covered[:, None] * own).sum(0) / seen, region, None)
        else:
            value = sum(share * term(own[place], region, place) for place, share in enumerate(covered) if share)
        group = {"token": 0, "region": region, "label": int(label[region])}[settings.average]
        found = of_group.setdefault(group, [0.0, 0.0])
        found[0], found[1] = found[0] + value, found[1] + seen
    return float(np.mean([value / weight for value, weight in of_group.values()])) if of_group else 0.0


def drawn(seed: int) -> Drawn:
    """Draw four images of 3 x 3 patches: one without a region, some regions out of view or left out, some labels
    twice."""
    chance = np.random.default_rng(seed)
    tokens = torch.from_numpy(chance.standard_normal((4, 9, 5)).astype(np.float32))
    known = chance.standard_normal((4, 5)).astype(np.float16)
    image = torch.tensor([0, 0, 0, 1, 3, 3])
    which = chance.integers(0, 4, 6)
    coverage = chance.integers(0, 256, (6, 9)) * (chance.random((6, 9)) < 0.5)
    coverage[4] = 0
    words = torch.tensor([[0, -1, -1], [3, 4, -1], [10, 5, 1], [7, -1, -1]])[which]
    table, queries = (
        torch.from_numpy(chance.standard_normal(size).astype(np.float32)) for size in ((11, 5), (4, 9, 5))
    )
    used, covered = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.from_numpy(coverage.astype(np.uint8))
    regions = Regions.of(torch.from_numpy(known[which]), covered, image, words, used)
    return Drawn(tokens, regions, table, queries)


def with_rule(regions: Regions, rule: Any) -> Regions:
    """The regions with the patches that a rule selects."""
    selected = select_patches(regions.coverage.numpy().reshape(-1, 3, 3), rule).reshape(-1, 9)
    return regions._replace(coverage=torch.from_numpy(selected))


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("rule", ["soft", "argmax"])
def test_patch_loss_is_what_its_formula_says(settings: PatchLossSettings, rule: Any) -> None:
    """To 1e-5, whole and in parts that know the divisor of the whole, gradients too. Catches a region that meets
    another image's tokens, weights that are counted twice, and parts that don't add up."""
    for seed in range(5):
        world = drawn(seed)
        regions = with_rule(world.regions, rule)
        world.tokens.requires_grad_()
        world.queries.requires_grad_()
        found = patch_loss(world.tokens, regions, settings, words=world.words(settings))
        expected = reference(world, regions.coverage.numpy(), settings)
        assert found.item() == pytest.approx(expected, abs=1e-5)
        learnt = world.queries if settings.kind == "head" else world.tokens
        (gradient,) = torch.autograd.grad(found, learnt)

        # In three micro-batches of two ranks, one of which has no region.
        pieces = []
        for first, last in ((0, 1), (1, 2), (2, 4)):
            mine = (regions.image >= first) & (regions.image < last)
            piece = Regions(*(column[mine] for column in regions))
            pieces.append((slice(first, last), piece._replace(image=piece.image - first)))
        ranks = [PatchDivisor.of([piece for _, piece in of_rank], settings) for of_rank in (pieces[:2], pieces[2:])]
        divisor = PatchDivisor.merged(ranks, settings)
        sums, parts = 0.0, torch.zeros_like(learnt)
        for images, piece in pieces:
            loss = patch_loss(world.tokens[images], piece, settings, divisor, world.words(settings, images))
            parts += torch.autograd.grad(loss, learnt)[0]
            sums += loss.item()
        assert sums == pytest.approx(expected, abs=1e-5)
        assert torch.allclose(parts, gradient, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_gradients_are_those_of_finite_differences(settings: PatchLossSettings) -> None:
    """To 1e-3 of the largest one. Catches a part of the loss that does not reach the tokens."""
    world = drawn(0)
    learnt = world.queries if settings.kind == "head" else world.tokens
    learnt.requires_grad_()
    (gradient,) = torch.autograd.grad(
        patch_loss(world.tokens, world.regions, settings, words=world.words(settings)), learnt
    )

    def at(step: torch.Tensor) -> float:
        moved = learnt.detach() + step
        changed = world._replace(queries=moved) if settings.kind == "head" else world._replace(tokens=moved)
        return reference(changed, world.regions.coverage.numpy(), settings)

    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(learnt.shape))).double()
    slope = (at(1e-4 * direction) - at(-1e-4 * direction)) / 2e-4
    assert slope == pytest.approx(float((gradient.double() * direction).sum()), rel=1e-3, abs=1e-4)


def test_a_vocabulary_in_pieces_gives_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch's logits are computed piece by piece, forward and backward."""
    settings = PatchLossSettings(kind="words")
    found = []
    for rows in (4096, 7):
        monkeypatch.setattr(patch_terms, "ROWS", rows)
        world = drawn(3)
        loss = patch_loss(world.tokens.requires_grad_(), world.regions, settings, words=world.words(settings))
        found.append((loss, torch.autograd.grad(loss, world.tokens)[0]))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), abs=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)


def test_a_mean_token_is_only_compared_where_that_makes_sense() -> None:
    """A mean token has no place, so no labels of its place, and the LLM has no output for it."""
    for wrong in ({"kind": "words"}, {"kind": "head"}, {"kind": "contrastive", "true_labels": "neutral"}):
        with pytest.raises(ValueError, match='use compare = "token"'):
            PatchLossSettings(compare="mean", **wrong)  # type: ignore[arg-type]


def test_settings_that_nothing_reads_are_refused() -> None:
    """Catches a user who believes that a setting of another kind does something, and a module without an LLM's words
    that would compute another loss."""
    for wrong in ({"true_labels": "neutral"}, {"kind": "contrastive", "label_tokens": "first"}):
        with pytest.raises(ValueError, match="leave it out"):
            PatchLossSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reads the words of an LLM"):
        PatchLoss("words")  # type: ignore[arg-type]


def test_aligned_tokens_cost_nothing_and_opposite_ones_most() -> None:
    """1 - cosine is 0 where each token is its label's direction, at any length, and 2 at the opposite."""
    regions = drawn(0).regions
    regions = Regions.of(regions.embeds[:1].repeat(6, 1), regions.coverage, regions.image)
    tokens = (regions.embeds[0] * 7).float().expand(4, 9, 5)
    for compare in ("token", "mean"):
        settings = PatchLossSettings(compare=compare)  # type: ignore[arg-type]
        assert patch_loss(tokens, regions, settings).item() == pytest.approx(0, abs=1e-6)
        assert patch_loss(-tokens, regions, settings).item() == pytest.approx(2, abs=1e-6)
    total, weight = mean_cosine(tokens, regions).tolist()
    assert total / weight == pytest.approx(1, abs=1e-6)


def test_beta_goes_as_its_schedule_says() -> None:
    """After half of the steps beta is at half, on a line and on a half cosine; after a quarter the two differ."""
    for schedule, quarter in (("linear", 1.25), ("cosine", 5 * (1 - np.cos(np.pi / 4)) / 2), ("constant", 5)):
        settings = TrainSettings(beta_schedule=schedule)  # type: ignore[arg-type]
        ends = [0, 2.5, 5] if schedule != "constant" else [5, 5, 5]
        assert [settings.beta(step, 9) for step in (0, 4, 8)] == pytest.approx(ends)
        assert settings.beta(2, 9) == pytest.approx(quarter)
