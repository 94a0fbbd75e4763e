"""A place for each vision token: what the LLM reads of it, what L_patch does not see of it, and its way into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.training.chat import load_llava
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.place import mean_size, place_waves
from pad_pipeline.training.projector import build_projector, load_projector, place_of, save_projector
from pad_pipeline.training.settings import TrainSettings
from tests.training.trained_models import WIDTH, asked, build, difference, view_for


def test_each_place_has_its_own_waves_of_row_and_column() -> None:
    """Catches rows taken for columns, waves that come again within the grid, and values of another size."""
    waves = place_waves(5, 32)
    assert waves.square().mean() == pytest.approx(1, abs=1e-6)
    places = waves.view(5, 5, 32)
    assert (places[:, :1, :16] == places[..., :16]).all() and (places[:1, :, 16:] == places[..., 16:]).all()
    assert float(torch.cdist(waves, waves).add(torch.eye(25) * 9).min()) > 1
    quarter = torch.tensor([2.0, 0.0, 0.0, 0.0]).sqrt()  # the shortest wave has 4 tokens: sines 0, 1, 0, -1
    assert torch.allclose(places[:2, 0, 0], quarter[[1, 0]], atol=1e-6)


def test_the_llm_reads_the_place_and_the_patch_loss_does_not(parts: Path) -> None:
    """Catches a place that L_patch compares with words, and one that does not reach the LLM."""
    plain, placed = build(parts), build(parts, place="fixed")
    placed.projector.load_state_dict(plain.projector.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.encode_images(pixels), placed.encode_images(pixels))
    place = place_of(placed.projector)
    assert place is not None
    size = mean_size(placed.llm.get_input_embeddings().weight)
    assert torch.equal(place, size * place_waves(placed.grid, WIDTH))
    found = asked(placed, pixels)[1]
    assert (found - asked(plain, pixels)[1]).abs().max() > 1e-3
    with torch.no_grad():
        place.zero_()
    assert torch.equal(asked(placed, pixels)[1], asked(plain, pixels)[1])
    assert not place.requires_grad
    learned = place_of(build(parts, place="learned").projector)
    assert learned is not None and learned.requires_grad


@pytest.mark.parametrize("kind", ["mlp", "linear", "c-abstractor", "pixel-shuffle"])
def test_the_exported_model_computes_what_was_trained(parts: Path, tmp_path: Path, kind: Any) -> None:
    """With each projector, through our loader, and then read by an analysis. Catches a place that is lost, added twice,
    or added to the tokens that an analysis compares with words. Tolerance 1e-4."""
    model = build(parts, place="learned", projector=kind, abstractor_tokens=16)
    with torch.no_grad():
        place = place_of(model.projector)
        assert place is not None
        place += torch.randn_like(place)
    export_llava(model, view_for(model), tmp_path / "hf")
    llava = load_llava(tmp_path / "hf").model
    assert difference(model, llava) < 1e-4
    assert {"llava_patches.py", "pixel_shuffle.py"} <= {path.name for path in (tmp_path / "hf").iterdir()}
    subject = Subject(tmp_path / "hf")
    pixels = torch.randn(2, 3, 56, 56)
    tokens = subject.encode_images(pixels)[1]
    assert (tokens - model.encode_images(pixels)).abs().max() < 1e-4
    assert torch.allclose(subject.placed(tokens), tokens + place, atol=1e-6)
    save_projector(model.projector, tmp_path / "mm_projector.bin")
    loaded = place_of(load_projector(tmp_path / "mm_projector.bin"))
    assert loaded is not None and torch.equal(loaded, place)


def test_a_projector_without_places_is_not_taken_for_one_with_places(parts: Path, tmp_path: Path) -> None:
    """And the other way round. Catches a place that is dropped in silence, or a random one."""
    for given, wanted in (("none", "fixed"), ("fixed", "none")):
        save_projector(build(parts, place=given).projector, tmp_path / "mm_projector.bin")
        settings = TrainSettings.model_validate({"place": wanted})
        with pytest.raises(UserError, match=f"and `place` is {wanted}"):
            MultimodalModel(
                str(parts / "clip"), str(parts / "vicuna"), settings, torch.device("cpu"),
                str(tmp_path / "mm_projector.bin"),
            )  # fmt: skip


def test_a_place_of_another_width_is_refused(tmp_path: Path) -> None:
    """In one line that names the file. Catches an error of shapes in the middle of a training or an analysis."""
    projector = build_projector("mlp", 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    torch.save(state | {"model.mm_projector.place": torch.zeros(4, 7)}, tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"its place is \[4, 7\], and its tokens have 8 numbers"):
        load_projector(tmp_path / "mm_projector.bin")
