"""Device, precision and transfers of the models. The same code runs on a GPU and without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pad_pipeline.errors import UserError


class ComputeSettings(BaseModel):
    """How tagger, detector and segmenter compute."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 without one. With bfloat16, matrix products and convolutions use it; norms,
    softmax, sampling, boxes, thresholds and resizes stay float32."""
    compile: bool = False
    """Compile the image encoders of tagger and segmenter with torch.compile, which takes minutes at the start of every
    process. The detector is not compiled, because its images have many sizes."""
    threads: int = Field(0, ge=0, exclude=True)
    """CPU threads of each model; 0 for torch's default. The command line sets it; it is not in run.json."""


class Compute:
    """The device and the precision of the models; creating one configures torch for the whole process."""

    def __init__(self, settings: ComputeSettings) -> None:
        self.settings = settings
        if settings.threads:
            # The number of threads decides the order in which sums are taken, and with it their last bits.
            torch.set_num_threads(settings.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        auto = settings.precision == "auto" and self.device.type == "cuda"
        self.bfloat16 = auto or settings.precision == "bfloat16"
        # Float32 must not become TensorFloat-32, in convolutions either: SAM's positions would move by a quarter pixel.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        # cuDNN's attention builds a plan for each new shape, which takes longer than the attention itself; boxes, texts
        # and images have many shapes. The flash and memory-efficient kernels accept all that occur here.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def put(self, model: nn.Module, in_float32: Iterable[nn.Module] = ()) -> nn.Module:
        """Move `model` to the device, in eval mode, ready for `autocast`, and return it.

        The weights of matrix products and convolutions are float32 before, and are cast here, once. Autocast would cast
        them in every forward pass, to the same numbers. The parts `in_float32` compute in float32 in any case.
        """
        model = model.to(self.device).eval()
        if self.bfloat16:
            whole = dict.fromkeys(in_float32)
            if self.device.type == "cpu":  # autocast does this for norms on a GPU only
                norms = (nn.LayerNorm, nn.GroupNorm)
                whole |= dict.fromkeys(module for module in model.modules() if isinstance(module, norms))
            exact = {module for part in whole for module in part.modules()}
            for part in whole:
                _leave_autocast(part)
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module not in exact:
                    module.to(torch.bfloat16)
        return model

    def compiled(self, module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """Compile `module` if `settings.compile` says so; otherwise return it unchanged.

        It is compiled for a full batch of this shape here, and not on first use: an error there would be blamed on the
        images. The module takes one tensor; call it with few different shapes, see `filled`.

        Raises:
            UserError: the module can't be compiled on this machine.
        """
        if not self.settings.compile:
            return module
        fast: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        try:
            with self.autocast():
                fast(torch.zeros(shape, device=self.device))
        except Exception as error:  # a compiler that is missing, too old, or fails: each has a class of its own
            rule = f"the models can't be compiled on this machine ({type(error).__name__})"
            remedy = "install a C++ compiler (g++), or set compile = false in the [compute] section"
            raise UserError("compute.compile", True, rule, remedy) from error
        return fast

    def filled(self, batch: Tensor, size: int) -> Tensor:
        """Fill up `batch` for a compiled module, because such a module is compiled again for each shape.

        Copies of the first row are appended up to `size` rows, or to a half, a quarter, ... of `size` where that is
        enough. Without compilation, `batch` is returned unchanged.
        """
        if not self.settings.compile or len(batch) >= size:
            return batch
        while size // 2 >= len(batch):
            size //= 2
        return torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a model's forward pass inside this context: inference mode, and autocast where bfloat16 is used."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def send(self, tensor: Tensor) -> Tensor:
        """Copy `tensor` to the device, through pinned memory, so that the caller does not wait for the copy."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class HostCopy:
    """A tensor that is being copied to the CPU in the background.

    `numpy` waits for the copy, so call it in another thread than the one that feeds the GPU.
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
        """Wait for the copy, and return it."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()


def padded_texts(texts: list[list[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids filled up with `pad`, and a mask that is 1 where a text is: int64 `[texts, length]` each."""
    ids = torch.full((len(texts), length), pad, dtype=torch.long)
    attended = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        attended[row, : len(text)] = 1
    return ids, attended


def _leave_autocast(module: nn.Module) -> None:
    """Make `module` compute in float32 wherever it is called: its inputs are cast to float32, and autocast is off."""
    forward = module.forward

    def exact(*inputs: object, **named: object) -> object:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return forward(*map(_float32, inputs), **{name: _float32(value) for name, value in named.items()})

    module.forward = exact


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
