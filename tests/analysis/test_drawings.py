"""The drawings of images as words: each patch in the color of its label, wrong ones marked, beside other models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_pipeline.analysis.draw import EDGE, GAP, INK, TITLE, color_of, true_labels
from pad_pipeline.training.projector import build_projector, save_projector

Pad = Callable[..., Any]


@pytest.fixture
def projectors(models_toml: Path, tmp_path: Path) -> list[Path]:
    from transformers import AutoConfig

    vision, llm = (AutoConfig.from_pretrained(models_toml.parent / part) for part in ("clip", "llm"))
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        width = getattr(vision, "vision_config", vision).hidden_size
        path = tmp_path / f"{seed}.bin"
        save_projector(build_projector("mlp", width, llm.hidden_size), path)
        paths.append(path)
    return paths


def test_a_patch_has_the_color_of_its_smallest_label() -> None:
    """Catches parts that their thing hides, and labels whose colors differ from image to image."""
    shown = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert true_labels(shown, [7, 3, 5]).tolist() == [7, 3, 5, -1]
    colors = [color_of(number) for number in range(40)]
    assert len(set(colors)) == 40
    near = [np.abs(np.subtract(one, two)).sum() for one, two in itertools.pairwise(colors)]
    assert min(near) > 60


def test_models_are_drawn_side_by_side(
    pad: Pad, projectors: list[Path], models_toml: Path, shards: Path, tmp_path: Path
) -> None:
    """The view, what is there, and each model. Catches grids that are transposed, a truth with crosses, and the same
    model drawn twice."""
    parts = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm", "--shards", shards]
    done = pad("analyze", "align", "--model", projectors[0], *parts, "--out", tmp_path / "a", "--drawings", 2)
    assert done.code == 0, done.err
    paths = sorted((tmp_path / "a").glob("words-*.png"))
    assert len(paths) == 2
    drawn = Image.open(paths[0]).convert("RGB")
    assert drawn.width == 3 * EDGE + 2 * GAP
    pixels = np.asarray(drawn).astype(int)[TITLE : TITLE + EDGE]
    truth, named = (pixels[:, column * (EDGE + GAP) :][:, :EDGE] for column in (1, 2))
    dark = [int((np.abs(panel - INK).sum(-1) == 0).sum()) for panel in (truth, named)]
    assert dark[0] == 0 < dark[1], "an untrained model names most patches wrongly"
    # The sky is above the ground: the truth's colors change more from top to bottom than from left to right.
    cells = truth[4::35, 4::35]
    assert np.abs(np.diff(cells, axis=0)).sum() > np.abs(np.diff(cells, axis=1)).sum()


def test_beside_takes_models_with_the_same_eyes(
    pad: Pad, projectors: list[Path], models_toml: Path, shards: Path, tmp_path: Path
) -> None:
    """`--beside` names model folders. Catches a drawing without them, and an option that does nothing in silence."""
    models = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm"]
    for number, steps in enumerate((1, 2)):
        done = pad(
            "train", "--shards", shards, *models, "--steps", steps, "--batch-size", 4, "--out", tmp_path / f"m{number}"
        )
        assert done.code == 0, done.err
    command = ["analyze", "align", "--model", tmp_path / "m0", "--beside", tmp_path / "m1", "--shards", shards]
    done = pad(*command, "--out", tmp_path / "a", "--drawings", 1)
    assert done.code == 0, done.err
    (path,) = (tmp_path / "a").glob("words-*.png")
    assert Image.open(path).width == 4 * EDGE + 3 * GAP
    done = pad(*command)
    assert done.code == 2 and "it is only drawn" in done.err
