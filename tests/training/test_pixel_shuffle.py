"""Compare the pixel shuffle with loops and with transformers' InternVL; pool masks to its grid; read and write its
file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import InternVLConfig, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import train
from pad_pipeline.training.pixel_shuffle import PixelShuffle
from pad_pipeline.training.projector import build_projector, load_projector, pool, save_projector, token_count
from pad_pipeline.training.settings import TrainSettings


def small(seed: int = 0) -> PixelShuffle:
    """Return a small pixel shuffle in which every weight matters."""
    torch.manual_seed(seed)
    projector = PixelShuffle(6, 10)
    with torch.no_grad():
        for weight in projector.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return projector


def expected_forward(state: dict[str, Tensor], x: Tensor, grid: int) -> Tensor:
    """Compute the pixel shuffle from a state dict, token by token, from its definition."""
    tokens = []
    for row in range(0, grid, 2):
        for column in range(0, grid, 2):
            corners = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
            joined = torch.cat([x[:, r * grid + c] for r, c in corners], 1)
            mean = joined.mean(1, keepdim=True)
            variance = ((joined - mean) ** 2).mean(1, keepdim=True)
            joined = (joined - mean) / torch.sqrt(variance + 1e-5) * state["0.weight"] + state["0.bias"]
            joined = joined @ state["1.weight"].T + state["1.bias"]
            joined = joined * 0.5 * (1 + torch.erf(joined / 2**0.5))
            tokens.append(joined @ state["3.weight"].T + state["3.bias"])
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("grid", [2, 4, 10])
def test_it_computes_what_a_second_implementation_and_internvl_compute(grid: int) -> None:
    """Catches another order of the four patches, rows taken for columns, and a layer that InternVL does not have."""
    projector = small()
    x = torch.randn(3, grid * grid, 6)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(hidden_size=6), text_config=Qwen2Config(hidden_size=10), downsample_ratio=0.5
    )
    reference = InternVLMultiModalProjector(config)
    names = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}
    reference.load_state_dict({names[name[0]] + name[1:]: value for name, value in projector.state_dict().items()})
    with torch.no_grad():
        found = projector(x)
        shuffled = InternVLModel.pixel_shuffle(reference, x.view(3, grid, grid, 6), 0.5)  # it does not use `self`
        internvl = reference(shuffled.reshape(3, -1, 24))
    assert found.shape == (3, grid * grid // 4, 10)
    torch.testing.assert_close(found, expected_forward(projector.state_dict(), x, grid), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, internvl, atol=1e-6, rtol=1e-6)


def test_masks_are_the_mean_of_the_patches_of_each_token() -> None:
    """Catches windows that do not lie where the tokens' patches do: coverage for patches twice as large is the same,
    but for rounding; and each patch that changes moves exactly the token whose pooled coverage it gives."""
    mask = np.zeros((60, 60), bool)
    mask[7:41, 3:22] = True
    fine, coarse = (View(size=60, patch=patch, fit="stretch").coverage(mask) for patch in (5, 10))
    projector = small()
    pooled = pool(projector, torch.from_numpy(fine).view(1, -1), 12)
    np.testing.assert_allclose(pooled.view(6, 6).numpy(), coarse, atol=1)
    assert (pooled.dtype, token_count(projector, 12)) == (torch.float32, 36)
    x = torch.randn(1, 16, 6)
    for patch in range(16):
        changed = x.clone()
        changed[0, patch] += 1 + torch.rand(6)
        with torch.no_grad():
            moved = (projector(changed) - projector(x)).norm(dim=-1)[0].nonzero().flatten()
        cell = torch.zeros(1, 16, dtype=torch.uint8)
        cell[0, patch] = 255
        assert moved.tolist() == pool(projector, cell, 4)[0].nonzero().flatten().tolist()
        assert pool(projector, cell, 4).sum() == 255 / 4


def test_its_file_has_internvls_names_and_comes_back(tmp_path: Path) -> None:
    """Catches a file that loads as LLaVA's MLP, a width that is not divided by four, and InternVL's own names
    refused."""
    projector = small()
    save_projector(projector, tmp_path / "mm_projector.bin")
    names = [f"{layer}.{name}" for layer in (0, 1, 3) for name in ("weight", "bias")]
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert list(state) == [f"model.mm_projector.{name}" for name in names]
    torch.save({f"mlp1.{name}": projector.state_dict()[name] for name in names}, tmp_path / "internvl.bin")
    x = torch.randn(2, 16, 6)
    for file in ("mm_projector.bin", "internvl.bin"):
        loaded = load_projector(tmp_path / file)
        assert isinstance(loaded, PixelShuffle)
        assert loaded.sizes == {"vision_width": 6, "llm_width": 10}
        with torch.no_grad():
            assert torch.equal(loaded(x), projector(x))


def test_an_odd_grid_is_refused_before_any_model_is_loaded(parts: Path, tmp_path: Path) -> None:
    """CLIP at 70 px has 5 x 5 patches. Catches a last row that is dropped or padded in silence, and minutes of loading
    before the error: the LLM that is named is not even there."""
    with pytest.raises(UserError, match="odd"):
        build_projector("pixel-shuffle", 6, 10, 27)
    (tmp_path / "tower").mkdir()
    text = (parts / "clip/config.json").read_text().replace('"image_size": 56', '"image_size": 70')
    (tmp_path / "tower/config.json").write_text(text)
    (tmp_path / "data.json").write_text("[]")
    job = Job(
        stage=1, settings=TrainSettings(projector="pixel-shuffle"), data=str(tmp_path / "data.json"),
        vision=str(tmp_path / "tower"), llm=str(tmp_path / "nowhere"), out=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(UserError, match="the tower's grid of 5 x 5 is odd; choose another projector") as refusal:
        train(job)
    assert (refusal.value.field, refusal.value.value) == ("projector", "pixel-shuffle")
