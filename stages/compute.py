"""Device, precision and data transfer for the models, on a GPU or without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pad_pipeline.console import note
from pad_pipeline.errors import UserError

COMPILE_FROM = 500_000
"""Images of a run from which on `compile = "auto"` compiles. This is calculated and not measured: on eight H200, such a
run takes a quarter of an hour. Encoders that are a tenth faster save as much of it as compiling takes."""
MOST_DIFFERENT = {True: 0.05, False: 0.001}
"""Largest difference of a compiled encoder's output, as root mean square over the spread of the output, with bfloat16
and without."""


class ComputeSettings(BaseModel):
    """Settings for the computation of tagger, detector and segmenter."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 without one. bfloat16 is only used for matrix products and convolutions;
    norms, softmax, sampling, boxes, thresholds and resizes stay float32."""
    compile: Literal["auto", True, False] = "auto"
    """Whether torch.compile compiles the image encoders of the tagger and of a SAM from a `.pth`, which takes minutes
    in each process. `auto` compiles on a GPU, for a run of 500,000 images or more. An encoder that can't be compiled,
    or that computes something else then, is used as it is, with a note; with `true` that is an error. The detector is
    not compiled, because its images have many sizes."""
    images: int = Field(0, ge=0, exclude=True)
    """Number of images of the run, for `compile = "auto"`. The run sets this value; run.json omits it."""
    threads: int = Field(0, ge=0, exclude=True)
    """CPU threads of each model; 0 for torch's default. The command line sets this value; run.json omits it."""


class Compute:
    """Device and precision of the models. Creating this object configures torch for the whole process."""

    def __init__(self, settings: ComputeSettings) -> None:
        self.settings = settings
        if settings.threads:
            # The number of threads affects the order of sums, and so their last bits.
            torch.set_num_threads(settings.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        auto = settings.precision == "auto" and self.device.type == "cuda"
        self.bfloat16 = auto or settings.precision == "bfloat16"
        long = self.device.type == "cuda" and settings.images >= COMPILE_FROM
        self.compiles = long if settings.compile == "auto" else settings.compile
        """Whether image encoders are compiled."""
        # Products and convolutions must not use TensorFloat-32: it would move SAM's positions by a quarter pixel.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        # cuDNN's attention builds a plan for each new shape, which takes longer than the attention itself, and boxes,
        # texts and images have many shapes. The flash and memory-efficient kernels can replace it everywhere.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def prepare_model(self, model: nn.Module, in_float32: Iterable[nn.Module] = ()) -> nn.Module:
        """Move a float32 `model` to the device, in eval mode, prepare it for `autocast`, and return it.

        With bfloat16, the weights of matrix products and convolutions are cast here. Autocast would cast them again in
        each forward pass, to the same values. The modules `in_float32` always compute in float32.
        """
        model = model.to(self.device).eval().requires_grad_(False)
        if not self.bfloat16:
            return model
        parts = {*in_float32}
        if self.device.type == "cpu":  # autocast keeps norms in float32 on a GPU only
            parts |= {module for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))}
        for part in parts:
            _keep_float32(part)
        exact = {module for part in parts for module in part.modules()}
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module not in exact:
                module.to(torch.bfloat16)
        return model

    def compiled(self, module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """Return a module that is compiled for full batches, of `shape`; `module` itself if `compiles` is false.

        Compilation happens here and not on first use, because an error there would count as a failure of images. The
        module takes and returns one tensor.

        Raises:
            UserError: `settings.compile` is true, and the module can't be compiled on this machine, or computes
                something else then.
        """
        if not self.compiles:
            return module
        cause, remedy = None, "set compile = false in the [compute] section"
        try:
            fast: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
            example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
            with self.autocast():
                found, wanted = fast(example).float(), module(example).float()
            difference = float((found - wanted).square().mean().sqrt() / wanted.std().clamp_min(1e-12))
            if difference <= MOST_DIFFERENT[self.bfloat16]:
                return _FullBatches(module, fast, shape)
            rule = f"a compiled model computes something else on this machine (by {difference:.2g} of the spread)"
        except Exception as error:  # a missing, old or failing compiler: each raises another class
            rule, cause = f"the models can't be compiled on this machine ({type(error).__name__})", error
            remedy = f"install a C++ compiler (g++), or {remedy}"
        if self.settings.compile == "auto":
            note(f"{rule}: {type(module).__name__} is used as it is, which is slower.", "yellow")
            return module
        raise UserError("compute.compile", True, rule, remedy) from cause

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Return a context for a model's forward pass: inference mode, and autocast if bfloat16 is used."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def send(self, tensor: Tensor) -> Tensor:
        """Copy `tensor` to the device without waiting for the copy, by way of pinned memory."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class _FullBatches(nn.Module):
    """Passes batches of one shape to a compiled module, and all others, which are few, to the module as it is: it would
    be compiled again for each shape."""

    def __init__(self, module: nn.Module, compiled: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.compiled, self.shape = module, compiled, shape

    def forward(self, batch: Tensor) -> Tensor:
        """Return what the module returns."""
        found: Tensor = (self.compiled if batch.shape == self.shape else self.module)(batch)
        return found


class HostCopy:
    """A copy of a tensor to the CPU, made in the background.

    `numpy` waits for the copy, so do not call it in the thread that feeds the GPU.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor.detach()
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def numpy(self) -> np.ndarray:
        """Wait for the copy and return the array."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()


def padded_texts(texts: list[list[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids, filled up with `pad`, and their attention mask (1 for a text): int64 `[texts, length]` each."""
    ids = torch.tensor([text + [pad] * (length - len(text)) for text in texts])
    return ids, (torch.arange(length) < torch.tensor([[len(text)] for text in texts])).long()


def _keep_float32(module: nn.Module) -> None:
    """Make `module` cast its inputs to float32 and compute without autocast."""
    forward = module.forward

    def exact(*inputs: object, **named: object) -> object:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return forward(*map(_float32, inputs), **{name: _float32(value) for name, value in named.items()})

    module.forward = exact


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
