"""Communicate between the processes of a training: one alone, those of torchrun, or the workers of Ray Train."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(NamedTuple):
    """The number of this process, from 0, among the `world` processes of a training, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` over all ranks, in place, and return them."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of `parameters` over all ranks, in one collective. A missing gradient counts as 0."""
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad in zip(parameters, torch.split(flat, [g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each rank. It is pickled, so it should be small."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yield this process's place among the ranks of the training.

    The ranks are those of an existing process group (Ray Train's), or those that torchrun's environment variables name,
    or this process alone. A process group that is made here is ended here.
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
