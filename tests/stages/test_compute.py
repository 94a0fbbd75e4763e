"""Compiled image encoders: when, and what happens where compiling fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pad_pipeline.errors import UserError
from pad_pipeline.stages.compute import COMPILE_FROM, Compute, ComputeSettings
from tests.conftest import ROOT


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()).eval()


def broken(module: nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    raise RuntimeError("no compiler")


def wrong(module: nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda batch: module(batch) * 1.01


def test_long_runs_on_a_gpu_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes minutes in each process: a sample of 1,000 images does not wait for it, and a run of days does.
    Catches a default that compiles on a CPU."""
    assert not Compute(ComputeSettings(images=COMPILE_FROM)).compiles
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Compute(ComputeSettings(images=COMPILE_FROM)).compiles
    assert not Compute(ComputeSettings(images=COMPILE_FROM - 1)).compiles
    assert not Compute(ComputeSettings(images=COMPILE_FROM, compile=False)).compiles
    assert Compute(ComputeSettings(compile=True)).compiles
    assert "images" not in ComputeSettings(images=5).model_dump(), "run.json is the same for every number of images"


@pytest.mark.parametrize(("compiler", "told"), [(broken, "can't be compiled"), (wrong, "computes something else")])
def test_an_encoder_that_compiles_badly_is_used_as_it_is(
    compiler: object, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody asked for it, so it stops no run; it is said. Who asks for it gets an error. Catches a compiler that
    changes what a model finds."""
    monkeypatch.setattr(torch, "compile", compiler)
    module, shape = encoder(), (4, 3, 8, 8)
    compute = Compute(ComputeSettings())
    compute.compiles = True  # as on a GPU in a long run
    assert compute.compiled(module, shape) is module
    assert told in capsys.readouterr().err
    with pytest.raises(UserError, match=told):
        Compute(ComputeSettings(compile=True)).compiled(module, shape)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_a_compiled_encoder_computes_the_same() -> None:
    """With the real compiler, for full batches; the others are few, and compiling takes minutes for each shape. In a
    process of its own, because torch remembers the compiler of a process, also a broken one of another test."""
    script = """
import torch
from pad_pipeline.stages.compute import Compute, ComputeSettings
from tests.stages.test_compute import encoder

module, compute = encoder(), Compute(ComputeSettings(compile=True))
fast = compute.compiled(module, (4, 3, 8, 8))
assert fast is not module
for count in (4, 3, 1):
    batch = torch.rand(count, 3, 8, 8)
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(fast(batch), module(batch), atol=1e-5, rtol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
