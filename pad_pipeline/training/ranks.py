"""Communicate between the ranks, which are the processes of a training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(NamedTuple):
    """This process among the `world` processes of a training: its number `rank`, from 0, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is rank 0, which writes the files and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Replace `values` by their sum over all ranks, and return them."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each parameter's gradient by its sum over all ranks, in one collective. A missing one is 0."""
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad in zip(parameters, torch.split(flat, [g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each rank. It should be small, because it is pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all ranks have called this method."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yield this process's number among the ranks, and its device.

    The ranks come from an existing process group (Ray Train's), else from torchrun's environment variables; else this
    process is alone. A process group that this function starts is ended on exit.
    """
    makes_group = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if makes_group:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device) if dist.is_initialized() else Ranks(0, 1, device)
    finally:
        if makes_group:
            dist.destroy_process_group()
