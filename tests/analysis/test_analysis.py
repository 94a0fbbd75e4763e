"""The analyses' arithmetic, on sets with a known answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.analysis.patches import EncodedBatch, LabeledImage
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import AlignStudy
from pad_pipeline.analysis.study import Context
from pad_pipeline.measures.align import Align
from pad_pipeline.measures.entropy import PooledEntropy, von_neumann_entropy
from pad_pipeline.measures.overlap import neighbor_overlap

# ---------------------------------------------------------------- entropy


def orthogonal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal rows `[n, d]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64))[0].mT


def test_entropy_of_one_direction_is_0_and_of_orthonormal_rows_ln_n() -> None:
    """Catches a wrong trace, a logarithm of another base, a Gram matrix of the wrong side."""
    line = torch.outer(torch.arange(1.0, 8), torch.randn(5, generator=torch.Generator().manual_seed(1)))
    assert float(von_neumann_entropy(line)) == pytest.approx(0, abs=1e-9)
    for n, d in ((6, 20), (20, 20), (1, 4)):
        assert float(von_neumann_entropy(orthogonal(n, d) * 7)) == pytest.approx(math.log(n), abs=1e-9)
    assert float(von_neumann_entropy(torch.zeros(3, 4))) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(6, 9), st.integers(6, 9))
def test_entropy_of_a_given_spectrum(values: list[float], n: int, d: int) -> None:
    """X = U diag(s) V^T has the eigenvalues s^2: the entropy is that of their shares, wide or tall."""
    k = len(values)
    rows = orthogonal(k, n).mT @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ orthogonal(k, d, 1)
    shares = np.square(values) / np.square(values).sum()
    assert float(von_neumann_entropy(rows)) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)


@pytest.mark.parametrize("center", [False, True])
def test_pooled_entropy_is_that_of_all_vectors_at_once(center: bool) -> None:
    """Catches a center taken per part, or a part that counts twice."""
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3
    pooled = PooledEntropy(7)
    pooled.add(rows[:25].view(5, 5, 7))
    pooled.add(rows[25:])
    assert pooled.entropy(center) == pytest.approx(float(von_neumann_entropy(rows, center)), abs=1e-9)
    assert math.isnan(PooledEntropy(7).entropy())


def test_entropy_of_sets_side_by_side() -> None:
    """Catches sets that are mixed, or centered together."""
    sets = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(3)) + torch.arange(3.0)[:, None, None]
    for center in (False, True):
        alone = [float(von_neumann_entropy(one, center)) for one in sets]
        assert von_neumann_entropy(sets, center).tolist() == pytest.approx(alone, abs=1e-9)


def test_mixtures_are_pooled_as_the_vectors_that_they_are() -> None:
    """The short way over the mixtures' coefficients against the vectors themselves; catches a lost mean or count."""
    random = torch.Generator().manual_seed(4)
    for center in (False, True):
        short, plain = PooledEntropy(9), PooledEntropy(9)
        for rows, labels in ((7, 2), (3, 5)):
            mix, basis = torch.rand(rows, labels, generator=random), torch.randn(labels, 9, generator=random)
            short.add_mixed(mix, basis)
            plain.add(mix.double() @ basis.double())
        assert short.entropy(center) == pytest.approx(plain.entropy(center), abs=1e-9)
        assert short.count == plain.count == 10


# ---------------------------------------------------------------- Align


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens `[36, 16]` that are the embeddings of what a grid of 6 x 6 shows, the words `[3, 16]`, the masks."""
    words = orthogonal(3, 16, seed).float()
    label = torch.arange(36) // 6 // 2  # bands of 12 patches
    return words[label] * 2, words, torch.stack([label == number for number in range(3)])


@pytest.mark.parametrize("rule", ["best", "fixed", "argmax"])
def test_planted_embeddings_give_align_1(rule: str) -> None:
    """Catches masks or tokens in another order than each other."""
    align = Align(rule)  # type: ignore[arg-type]
    tokens, words, shown = planted()
    align.add(tokens, words, shown)
    align.add(tokens.flip(0), words, shown.flip(1))
    assert (align.value(), align.pairs) == (1, 6)


@pytest.mark.parametrize("rule", ["fixed", "argmax"])
def test_a_label_that_is_elsewhere_gives_align_0(rule: str) -> None:
    """A derangement of labels: no band overlaps another. Catches an IoU that counts empty meeting empty as a hit."""
    align = Align(rule)  # type: ignore[arg-type]
    tokens, words, shown = planted()
    align.add(tokens, words[[1, 2, 0]], shown)
    assert align.value() == 0


def test_align_of_one_shape_over_another_by_hand() -> None:
    """12 patches say the word; the mask has 6 of them and 6 others: 6 / 18. The best threshold may also take every
    patch: 12 / 36, the same."""
    tokens, words, _ = planted()
    mask = torch.zeros(36, dtype=torch.bool)
    mask[6:18] = True
    for rule in ("fixed", "best"):
        align = Align(rule)  # type: ignore[arg-type]
        align.add(tokens, words[:1], mask[None])
        assert align.value() == pytest.approx(1 / 3)


def test_a_label_that_the_view_does_not_show_does_not_count() -> None:
    """Catches a mean over regions that were cropped away."""
    align = Align("fixed")
    tokens, words, shown = planted()
    shown[1] = False
    align.add(tokens, words, shown)
    assert (align.value(), align.pairs) == (1, 2)
    assert math.isnan(Align().value())


def test_a_patch_may_choose_among_the_labels_of_all_images() -> None:
    """A patch that says what only other images have must say one of its own image's labels, or none of them."""
    tokens, words, shown = planted()
    own, all_labels = Align("argmax"), Align("argmax")
    own.add(tokens, words[:2], shown[:2])
    all_labels.add(tokens, words[:2], shown[:2], rivals=words)
    assert own.value() == pytest.approx((1 / 2 + 1) / 2)  # the third band falls to the first label
    assert all_labels.value() == 1


class Planted:
    """A model whose tokens are the embeddings of what its patches show; an untrained one says nothing."""

    def __init__(self, words: dict[str, torch.Tensor]) -> None:
        self.words = words

    def embed(self, labels: list[str]) -> torch.Tensor:
        return torch.stack([self.words[label] for label in labels])

    def untrained(self, seed: int) -> Any:
        return torch.zeros_like


@pytest.mark.parametrize("among", ["image", "all"])
@pytest.mark.parametrize("rule", ["fixed", "argmax"])
def test_controls_know_nothing_where_the_model_knows_all(rule: str, among: str) -> None:
    """Six images of three of twelve labels, planted: Align 1. Catches a control that is the model itself: labels that
    are the image's own, patches in their places, the trained projector."""
    table = dict(zip("abcdefghijkl", orthogonal(12, 16, 3).float(), strict=True))
    settings = AnalysisSettings(threshold_rule=rule, among=among)  # type: ignore[arg-type]
    study = AlignStudy(Context(Planted(table), settings, sorted(table)))  # type: ignore[arg-type]
    for number in range(6):
        labels = [sorted(table)[(3 * number + step) % 12] for step in range(3)]
        _, _, shown = planted()
        tokens = torch.stack([table[label] for label in labels])[torch.arange(36) // 12]
        one = LabeledImage(str(number), torch.zeros(3, 8, 8), labels, shown, "")
        study.add(EncodedBatch([one], tokens[None], tokens[None]))
    found = study.result()
    assert found["align"] == 1 and found["pairs"] == 18 and found["everywhere"] == pytest.approx(1 / 3)
    # Three labels of a third each: 1/5 by chance for patches in any order, and 1/9 where the first label takes all.
    assert found["shuffled_patches"] == pytest.approx(0.2, abs=0.08)
    assert found["untrained_projector"] <= 0.12
    # A patch that has to choose among three labels that it is not chooses by rounding.
    assert found["shuffled_labels"] <= (0.12 if (rule, among) != ("argmax", "image") else 0.4)


# ---------------------------------------------------------------- neighbors


def test_a_rotation_keeps_all_neighbors_and_noise_keeps_chance() -> None:
    """Catches a vector that counts as its own neighbor."""
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(5))
    turned = rows @ orthogonal(8, 8, 6).float() * 3
    assert float(neighbor_overlap(rows, turned, 10)) == pytest.approx(1, abs=0.01)
    other = torch.randn(400, 8, generator=torch.Generator().manual_seed(7))
    assert float(neighbor_overlap(rows, other, 10)) == pytest.approx(10 / 399, abs=0.01)
