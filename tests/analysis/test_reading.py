"""The linear reading of place and label, on tokens whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pad_pipeline.measures import reading
from pad_pipeline.measures.reading import LinearReader, Reading

SIDE, WIDTH, LABELS = 6, 24, 4


def read(noise: float, place: bool = True, images: int = 40, labels: int = LABELS) -> Reading:
    """Read tokens that hold their place and their label in random directions, and noise."""
    chance = np.random.default_rng(0)
    directions = chance.standard_normal((2 + LABELS, WIDTH))
    reader = LinearReader(labels)
    for number in range(images):
        rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
        label = chance.integers(-1, LABELS, SIDE * SIDE)
        codes = np.concatenate([np.stack([rows, columns], 1) * place / SIDE, np.eye(LABELS + 1)[label][:, :LABELS]], 1)
        tokens = 3 + codes @ directions + noise * chance.standard_normal((SIDE * SIDE, WIDTH))
        reader.add(f"image {number}", torch.from_numpy(tokens).float(), torch.from_numpy(label))
    return reader.result()


def test_what_tokens_hold_is_read_and_nothing_else() -> None:
    """Catches a fit that is scored on its own images (then noise could be read), rows taken for columns, and a
    constant that the regression lacks."""
    whole = read(0.01)
    assert whole.row > 0.99 and whole.column > 0.99 and whole.label > 0.99
    assert whole.label_by_chance == pytest.approx(1 / LABELS, abs=0.05)
    without = read(0.01, place=False)
    assert abs(without.row) < 0.1 and abs(without.column) < 0.1 and without.label > 0.99
    noisy = read(3.0)
    assert 0.05 < noisy.row < 0.95 and 1.3 / LABELS < noisy.label < 0.95


def test_the_reading_is_the_ridge_regression_of_a_second_implementation() -> None:
    """To 1e-4. Catches a ridge of another strength, and rows that are taken for columns."""
    chance = np.random.default_rng(1)
    tokens = {f"{n}": chance.standard_normal((4, 3)).astype(np.float32) for n in range(30)}
    rows = np.array([0, 0, 1, 1]) / 2
    for one in tokens.values():
        one[:, 0] += 4 * rows
    reader = LinearReader()
    for key, one in tokens.items():
        reader.add(key, torch.from_numpy(one))
    fitted = [key for key in tokens if reading.zlib.crc32(key.encode()) % 2]
    x, y = np.concatenate([tokens[key] for key in fitted]), np.tile(rows, len(fitted))
    rest = [key for key in tokens if key not in fitted]
    centered = x - x.mean(0)
    weights = np.linalg.solve(
        centered.T @ centered + reading.RIDGE * x.var(0).mean() * len(x) * np.eye(3), centered.T @ (y - y.mean())
    )
    seen, truth = np.concatenate([tokens[key] for key in rest]), np.tile(rows, len(rest))
    errors = (seen - x.mean(0)) @ weights + y.mean() - truth
    found = reader.result()
    assert found.row == pytest.approx(1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum(), abs=1e-4)
    assert found.row > 0.3 > found.column


def test_nothing_to_read_is_no_number() -> None:
    """One image is either fitted or scored; without labels the place is read all the same."""
    assert all(math.isnan(number) for number in read(0.1, images=1))
    alone = read(0.01, labels=0)
    assert alone.row > 0.99 and math.isnan(alone.label)
    with pytest.raises(ValueError, match="5 tokens are no square grid"):
        LinearReader().add("a", torch.zeros(5, 3))
