"""Where and how the models compute: device, precision, transfers. The same code on a GPU and without one."""

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
    """How all three annotation models compute."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 without one. In bfloat16 only matrix products and convolutions are; norms,
    softmax, sampling, boxes, thresholds and resizes stay float32."""
    compile: bool = False
    """Compile the image encoders of the tagger and the segmenter with torch.compile: minutes at the start of every
    process. The detector's is not compiled, because its images have many sizes."""
    threads: int = Field(0, ge=0, exclude=True)
    """CPU threads of each model; 0 leaves it to torch. The command line sets it; it is not in run.json."""


class Compute:
    """The device and the precision that the settings come to on this machine."""

    def __init__(self, settings: ComputeSettings) -> None:
        self.settings = settings
        if settings.threads:
            # Set here and not left to the process: it decides in which order sums are taken, and so their last bits.
            torch.set_num_threads(settings.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        auto = settings.precision == "auto" and self.device.type == "cuda"
        self.bfloat16 = auto or settings.precision == "bfloat16"
        # What is float32 is float32, in convolutions too; TensorFloat-32 would move SAM's positions by a quarter pixel.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        # cuDNN's attention builds a plan for each new shape, which takes longer than what it is for: boxes, texts and
        # images come in many. Flash and memory-efficient kernels take all shapes that occur here.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def put(self, model: nn.Module, in_float32: Iterable[nn.Module] = ()) -> nn.Module:
        """`model` on the device, in eval mode, ready for `autocast`.

        Weights of matrix products and convolutions are cast once, here: autocast would cast them again in every
        forward, to the same numbers.

        Args:
            model: with float32 weights.
            in_float32: parts of it that compute in float32 all the same.
        """
        model = model.to(self.device).eval()
        if self.bfloat16:
            whole = list(dict.fromkeys(in_float32))
            if self.device.type == "cpu":  # autocast does this for norms on a GPU only
                norms = (nn.LayerNorm, nn.GroupNorm)
                whole += [module for module in model.modules() if isinstance(module, norms) and module not in whole]
            exact = {module for part in whole for module in part.modules()}
            for part in whole:
                _leave_autocast(part)
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module not in exact:
                    module.to(torch.bfloat16)
        return model

    def compiled(self, module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """`module` as `settings.compile` wants it.

        Args:
            module: to be called with tensors of one shape, see `filled`.
            shape: of a full batch; compiled for it here, so that what goes wrong does not become the images' fault.

        Raises:
            UserError: it can't be compiled on this machine.
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
        """`batch`, for a compiled module filled up to `size` rows, or to a half, a quarter, ... of it where that will
        do: it is compiled for each shape anew."""
        if not self.settings.compile or len(batch) >= size:
            return batch
        while size // 2 >= len(batch):
            size //= 2
        return torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """What a model's forward pass stands in."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def send(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device; by way of pinned memory, so that nobody waits for the copy."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class HostCopy:
    """A tensor on its way to the CPU. Whoever needs the numbers waits for them, which should not be the thread that
    feeds the GPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        self._tensor = tensor.detach()
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def numpy(self) -> np.ndarray:
        """The numbers, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()


def _leave_autocast(module: nn.Module) -> None:
    """Let `module` compute in float32 wherever it is called: inputs are cast up, autocast is off inside."""
    forward = module.forward

    def exact(*inputs: object, **named: object) -> object:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return forward(*map(_float32, inputs), **{name: _float32(value) for name, value in named.items()})

    module.forward = exact


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
