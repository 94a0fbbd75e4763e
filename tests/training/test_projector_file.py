"""mm_projector.bin passes between LLaVA's code and ours in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pad_pipeline.training.export import export
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.projector import build_projector, save_projector
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.settings import Stage2Settings
from tests.training.trained_models import WIDTH, build, difference, stock, view_for

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_llavas_code_loads_our_projector(kind: Any, tmp_path: Path) -> None:
    """LLaVA takes the text after `mm_projector.` for the names in its own Sequential or Linear."""
    projector = build_projector(kind, 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    weights = torch.load(tmp_path / "mm_projector.bin", map_location="cpu")
    weights = {name.split("mm_projector.")[1]: value for name, value in weights.items() if "mm_projector" in name}
    theirs: torch.nn.Module = torch.nn.Linear(6, 8)
    if kind == "mlp":
        theirs = torch.nn.Sequential(theirs, torch.nn.GELU(), torch.nn.Linear(8, 8))
    theirs.load_state_dict(weights)
    x = torch.randn(3, 6)
    assert torch.equal(theirs(x), projector(x))


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model.", "module.model.", "model.model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_init_takes_llavas_own_projector(parts: Path, prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """LLaVA's file as its different trainings write it: with ZeRO, with LoRA, in bfloat16. Catches a start from a
    random projector where the names are not known."""
    made = torch.nn.Sequential(torch.nn.Linear(24, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)).to(dtype)
    path = tmp_path / "mm_projector.bin"
    torch.save({f"{prefix}mm_projector.{name}": value for name, value in made.state_dict().items()}, path)
    model = MultimodalModel(
        str(parts / "clip"), str(parts / "vicuna"), Stage2Settings(), torch.device("cpu"), str(path)
    )
    found = model.projector.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in made.state_dict().items())
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_projector_comes_back_from_the_folder(parts: Path, tmp_path: Path) -> None:
    """Out as both kinds and in again: the file and the folder hold the same projector."""
    model = build(parts)
    export(model, view_for(model), tmp_path, Ranks(0, 1, torch.device("cpu")))
    again = MultimodalModel(
        str(parts / "clip"), str(parts / "vicuna"), Stage2Settings(), torch.device("cpu"),
        str(tmp_path / "mm_projector.bin"),
    )  # fmt: skip
    assert difference(again, stock(tmp_path / "hf")) < 1e-5
