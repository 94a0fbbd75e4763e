"""Matching pursuit, against planted sums and against plain loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.measures import vectors as vectors_module
from pad_pipeline.measures.pursuit import Decomposition, matching_pursuit
from pad_pipeline.measures.vectors import WordVectors

Floats = npt.NDArray[np.float64]


def brute_force(
    token: Floats, words: Floats, steps: int, orthogonal: bool, positive: bool
) -> tuple[list[int], Floats, list[float], float]:
    """Decompose one token with all words of length 1, in float64: the words, their coefficients, the residual energies,
    and the least lead that a step's word had over the next best, as a share of the token's length."""
    rest, taken, left, lead = token.copy(), [], [1.0], np.inf
    coefficients = np.zeros(0)
    for _ in range(steps):
        scores = words @ rest
        strength = scores.copy() if positive else np.abs(scores)
        if orthogonal:
            strength[taken] = -np.inf
        taken.append(int(strength.argmax()))
        lead = min(lead, float(np.diff(np.sort(strength)[-2:])[0]) / float(np.linalg.norm(token)))
        if orthogonal:
            coefficients = np.linalg.lstsq(words[taken].T, token, rcond=None)[0]
        else:
            coefficients = np.append(coefficients, scores[taken[-1]])
        rest = token - coefficients @ words[taken]
        left.append(float(rest @ rest / (token @ token)))
    return taken, coefficients, left, lead


def compare(found: Decomposition, tokens: torch.Tensor, table: torch.Tensor, orthogonal: bool, positive: bool) -> int:
    """Compare with brute force, and return how many tokens had words with a clear lead.

    Where two words are equal up to float32, either may be taken. Then only the order of words may differ.
    """
    words = table.double().numpy()
    words = words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-12)
    clear = 0
    for row, token in enumerate(tokens.double().numpy()):
        taken, coefficients, left, lead = brute_force(token, words, found.words.shape[1], orthogonal, positive)
        if lead < 1e-5:
            continue
        clear += 1
        assert found.words[row].tolist() == taken
        length = np.linalg.norm(token)
        assert found.coefficients[row].numpy() == pytest.approx(coefficients, abs=2e-5 * length)
        assert found.residual[row].numpy() == pytest.approx(np.array(left), abs=1e-5)
    return clear


def alike(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """200 tokens that are sums of the same few words, as an image's tokens are."""
    table = torch.randn(500, 48, generator=generator)
    shares = torch.rand(200, 5, generator=generator) * torch.tensor([4.0, 2, 1, 1, 1])
    return shares @ table[100:105] + 0.3 * torch.randn(200, 48, generator=generator), table


def apart(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that have nothing in common."""
    return torch.randn(60, 48, generator=generator), torch.randn(500, 48, generator=generator)


def close(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Words in families with cosines of 0.99, as forms of a word are, and a word of zeros."""
    families = torch.randn(50, 48, generator=generator).repeat(10, 1)
    table = families + 0.1 * torch.randn(500, 48, generator=generator)
    table[7] = 0
    return torch.randn(100, 2, generator=generator) @ table[:2] + torch.randn(100, 48, generator=generator) / 4, table


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("make", [alike, apart, close])
def test_pursuit_equals_brute_force_whatever_the_blocks(
    make: Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]],
    positive: bool,
    orthogonal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Indices, coefficients and residuals, in blocks of 7 words, of 64 and in one; with as much memory as wanted, and
    with so little that tokens are taken by threes and products of words are forgotten. Catches scores that drift from
    their residuals, a block in the wrong place, products kept for another word, words taken twice."""
    tokens, table = make(torch.Generator().manual_seed(6))
    for block, memory in ((7, 2**20), (64, 2**20), (500, 2**20), (64, 1500)):
        monkeypatch.setattr(vectors_module, "SCORES", memory)
        monkeypatch.setattr(vectors_module, "KEPT", 10 * memory)
        vectors = WordVectors(table, block=block)
        for _ in range(2):  # the second time, products are kept
            found = matching_pursuit(tokens, vectors, 4, orthogonal, positive)
            assert compare(found, tokens, table, orthogonal, positive) >= len(tokens) * 0.9
            if orthogonal:
                assert all(len(set(words)) == 4 for words in found.words.tolist())


def test_products_of_words_are_kept_and_change_no_result() -> None:
    """Tokens that take the same words cost few products after the first: catches a cache that is never used, which
    only time would tell."""
    tokens, table = alike(torch.Generator().manual_seed(1))
    vectors, rows = WordVectors(table, torch.arange(3, 500)), 0
    products = vectors.products

    def counted(left: torch.Tensor, out: torch.Tensor) -> None:
        nonlocal rows
        rows += len(left)
        products(left, out)

    vectors.products = counted  # type: ignore[method-assign]
    first = matching_pursuit(tokens, vectors, 3)
    assert rows < 1.5 * len(tokens)
    rows = 0
    second = matching_pursuit(tokens, vectors, 3)
    assert rows == len(tokens)
    assert torch.equal(first.words, second.words) and torch.equal(first.coefficients, second.coefficients)


def test_chosen_rows_of_a_table_of_any_type_are_the_words() -> None:
    """Rows with gaps, in bfloat16, by numbers among the words: catches numbers of the table's rows, a block that is
    read as a slice across a gap, a table that is changed."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(90, 16, generator=generator).bfloat16()
    before, ids = table.clone(), torch.cat([torch.arange(2, 40), torch.arange(41, 60), torch.tensor([70, 88])])
    chosen, tokens = table[ids].float(), torch.randn(30, 16, generator=generator)
    found = matching_pursuit(tokens, WordVectors(table, ids, block=10), 3)
    assert compare(found, tokens, chosen, False, False) > 25
    cosines = torch.nn.functional.normalize(tokens, dim=-1) @ torch.nn.functional.normalize(chosen, dim=-1).mT
    assert torch.equal(WordVectors(table, ids, block=10).nearest(tokens), cosines.argmax(-1))
    assert torch.equal(before, table)


def test_orthogonal_pursuit_of_what_is_found_at_once_stays_finite() -> None:
    """After the first step nothing is left, and whatever is taken then depends on it: catches a division by zero."""
    table = torch.eye(4)[[0, 0, 0, 1]]
    found = matching_pursuit(torch.eye(4)[:1] * 3, WordVectors(table), 3, orthogonal=True)
    assert found.coefficients.isfinite().all() and found.residual[0, 1:].abs().max() < 1e-6
    assert float((found.coefficients[0][:, None] * table[found.words[0]]).sum(0)[0]) == pytest.approx(3)
    assert len(set(found.words[0].tolist())) == 3


@pytest.mark.parametrize("form", [False, True])
def test_pursuit_finds_a_planted_combination_in_order(form: bool) -> None:
    """3 w_5 - 2 w_9 + w_2 of orthonormal words: their order, coefficients and what is left are known."""
    words = torch.linalg.qr(torch.randn(16, 12, generator=torch.Generator().manual_seed(4)))[0].mT
    token, vectors = 3 * words[5] - 2 * words[9] + words[2], WordVectors(words * 9)
    found = matching_pursuit(torch.stack([token, words[7] * 4]), vectors, 3, orthogonal=form)
    assert found.words[0].tolist() == [5, 9, 2] and found.words[1, 0] == 7
    assert found.coefficients[0].tolist() == pytest.approx([3, -2, 1], abs=1e-5)
    assert found.residual[0].tolist() == pytest.approx([1, 5 / 14, 1 / 14, 0], abs=1e-5)
    only = matching_pursuit(token[None], vectors, 2, orthogonal=form, positive=True)
    assert only.words[0].tolist() == [5, 2]


def test_orthogonal_pursuit_explains_what_plain_pursuit_leaves() -> None:
    """Of words at an angle the orthogonal form takes none twice, and leaves nothing of what two of them span."""
    words = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    token = 1.0 * words[0] + 0.9 * words[1]
    plain, whole = (matching_pursuit(token[None], WordVectors(words), 2, orthogonal=form) for form in (False, True))
    assert set(whole.words[0].tolist()) == {0, 1}
    assert whole.coefficients[0, whole.words[0].argsort()].tolist() == pytest.approx([1, 0.9], abs=1e-5)
    assert float(whole.residual[0, -1]) == pytest.approx(0, abs=1e-10)
    assert float(plain.residual[0, -1]) > 0.001


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 5), st.booleans(), st.booleans())
def test_pursuit_of_any_few_tokens_equals_brute_force(seed: int, steps: int, form: bool, positive: bool) -> None:
    """Catches tokens of a batch that mix, and a number of steps that does not work."""
    generator = torch.Generator().manual_seed(seed)
    tokens, table = torch.randn(4, 6, generator=generator), torch.randn(20, 6, generator=generator)
    compare(matching_pursuit(tokens, WordVectors(table, block=8), steps, form, positive), tokens, table, form, positive)
