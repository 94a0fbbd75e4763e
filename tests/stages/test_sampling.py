"""Deformable sampling gives the sums of transformers' own module, in PyTorch and as a Triton kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from pad_pipeline.stages.dino.sampling import FusedSampling, sample
from tests.conftest import ROOT

SHAPES = [(5, 7), (3, 4), (1, 2)]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Values, places inside and far outside the levels, and weights: 2 images, 6 queries, 2 heads, 4 points."""
    chance = torch.Generator().manual_seed(0)
    value = torch.randn(2, sum(height * width for height, width in SHAPES), 2, 16, generator=chance)
    places = torch.rand(2, 6, 2, len(SHAPES), 4, 2, generator=chance) * 1.6 - 0.3
    places[0, 0, 0, 0] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-9e9, 0.5], [0.5, 9e9]])
    return value, places, torch.randn(2, 6, 2, len(SHAPES), 4, generator=chance)


def test_sums_are_those_of_transformers() -> None:
    """Catches x and y that are exchanged, a level that begins elsewhere, a pixel outside that counts. To 1e-5."""
    value, places, weights = drawn()
    begins = torch.tensor([0, 35, 47])
    arguments = value, torch.tensor(SHAPES), SHAPES, begins, places, weights, 64
    wanted = MultiScaleDeformableAttention()(*arguments)
    found = FusedSampling()(*arguments)
    assert found.shape == wanted.shape and wanted.std() > 0.5
    assert (found - wanted).abs().max() < 1e-5


def test_a_place_that_is_no_number_makes_its_sum_no_number() -> None:
    """Catches an index error in the place of NaN, after which the image's failure has a reason that nobody understands;
    on a GPU, it would end the process."""
    value, places, weights = drawn()
    places[1, 2, 0, 1, 0, 0] = float("nan")
    found = sample(value, SHAPES, places, weights)
    assert found[1, 2, :16].isnan().all() and found.isnan().sum() == 16


KERNEL = """
import torch
from pad_pipeline.stages.dino.kernel import sample_on_gpu
from pad_pipeline.stages.dino.sampling import sample
from tests.stages.test_sampling import SHAPES, drawn

value, places, weights = (tensor.to("DEVICE") for tensor in drawn())
for kind, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
    wanted = sample(value.to(kind).float(), SHAPES, places, weights)
    assert (sample_on_gpu(value.to(kind), SHAPES, places, weights) - wanted).abs().max() < limit
try:
    sample_on_gpu(value[..., :12], SHAPES, places, weights)
except ValueError as error:
    assert "12 channels are no power of two" in str(error)
else:
    raise AssertionError("12 channels were taken")
"""


@pytest.mark.slow
def test_the_kernel_gives_the_same_sums() -> None:
    """The kernel on a GPU, or in Triton's interpreter where none is, which must be chosen before Triton is imported:
    to 1e-5, with values in float32 and in bfloat16."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs")
    on_gpu = torch.cuda.is_available()
    environment = os.environ | ({} if on_gpu else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-c", KERNEL.replace("DEVICE", "cuda" if on_gpu else "cpu")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
