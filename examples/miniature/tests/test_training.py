"""The example: a stopped training goes on, and every model can be trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.miniature.__main__ import main
from examples.miniature.muon import Muon
from examples.miniature.recipe import Budget, Recipe, fit
from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import MANIFEST, Manifest, checked_folder
from pad_pipeline.workflows import cli

ROOT = Path(__file__).parents[3]


class Line(Recipe):
    """y = 2 x, by a Linear; noisy, so that the order of steps matters."""

    name = "tagger"

    def __init__(self, steps: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seed = 0
        self.budget = Budget(steps=steps, batch_size=4, learning_rate=0.01, warmup=2, pool=3)
        self.network = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": 2 * x[:, :1]}

    def mirrored(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": -batch["x"], "y": -batch["y"]}

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.network(batch["x"]) - batch["y"]).square().mean(), {}

    def export(self, folder: Path) -> dict[str, float]:
        return {}


def trained_by(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> list[torch.Tensor]:
    """Two matrices, wide and tall, after four steps of falling gradients."""
    random = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((16, 48), (40, 24))]
    optimizer = make([{"params": matrices}])
    for step in range(4):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=random) / (step + 1)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def test_muon_takes_the_steps_of_torchs_own() -> None:
    """In float32 instead of bfloat16. Catches: another momentum, rate or decay, and tall matrices turned wrongly."""
    upstream = trained_by(
        lambda groups: torch.optim.Muon(groups, 0.01, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    )
    ours = trained_by(lambda groups: Muon(groups, 0.01, 0.5))
    start = trained_by(lambda groups: torch.optim.SGD(groups, 0.0))
    for theirs, mine, before in zip(upstream, ours, start, strict=True):
        difference = (mine - theirs).norm() / (theirs - before).norm()
        assert difference < 0.01  # bfloat16 has 8 bits


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Optimizers, schedule, order and mirroring of batches all go on where they were."""
    whole = Line()
    fit(whole, tmp_path / "whole")

    first, steps_taken = Line(), iter(range(7))
    learn = first.loss

    def until_the_machine_is_gone(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if next(steps_taken, None) is None:
            raise RuntimeError("gone")
        return learn(batch)

    first.loss = until_the_machine_is_gone  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="gone"):
        fit(first, tmp_path / "parts", save_every=0)
    second = Line()
    fit(second, tmp_path / "parts")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert steps == [0, 11]
    with pytest.raises(UserError, match="its budget differ"):
        fit(Line(steps=13), tmp_path / "parts")
    (tmp_path / "parts/state.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="can't be read"):
        fit(Line(), tmp_path / "parts")


def test_what_is_missing_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tagger that the detector starts from, and SciPy, which pad does not bring."""
    assert main(["detector", "--out", str(tmp_path)]) == 2
    assert "first run `python -m examples.miniature tagger`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main(["all", "--out", str(tmp_path)]) == 2
    assert "the package scipy is not installed; pip install" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "python -m examples.miniature all --out" in capsys.readouterr().out


@pytest.mark.long
def test_every_model_can_be_trained_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps each: not a good miniature, but a whole one, which `--models FILE.toml` takes."""
    assert main(["all", "--out", str(tmp_path), "--steps", "2"]) == 0
    manifest = Manifest.model_validate_json((tmp_path / "models" / MANIFEST).read_bytes())
    assert set(manifest.members) == {"tagger", "detector", "segmenter", "clip", "llm"}
    assert checked_folder(tmp_path / "models")
    write_world(tmp_path / "world", 2)
    toml, images = tmp_path / "models/models.toml", tmp_path / "world/images"
    build = ["build", "--images", images, "--out", tmp_path / "s", "--models", toml, "--engine", "local"]
    monkeypatch.setattr("sys.argv", ["pad", *map(str, build)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads((tmp_path / "s/run.json").read_text())["view"] == {"size": 112, "patch": 8, "fit": "crop"}
    assert main(["tagger", "--out", str(tmp_path), "--steps", "2", "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.long
def test_batches_do_not_depend_on_the_hash_seed() -> None:
    """A prompt in the order of a set would differ from run to run, and after a resume."""
    code = (
        "import hashlib, torch; from examples.miniature.detector import DetectorRecipe; "
        "r = DetectorRecipe(); r.budget.batch_size = 3; b = r.batch(5); "
        "print(hashlib.sha256(b''.join(b[n].numpy().tobytes() for n in sorted(b))).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
