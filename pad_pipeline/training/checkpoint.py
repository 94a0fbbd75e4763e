"""Save and load checkpoints: the trainable parameters, the optimizer's state and the number of the step.

A checkpoint is whole or not there, and can be loaded on another number of ranks than the one that saved it.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as states

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder, atomic_write
from pad_pipeline.training.ranks import Ranks

_NAME = re.compile(r"step-([0-9]{8,})")
_STATE, _FACTS = "state.pt", "facts.json"


class Saved(NamedTuple):
    """A checkpoint on disk."""

    step: int
    """Number of steps that were done when it was saved."""
    path: Path
    loss: float | None
    """Loss on the held-out samples; None where it was not measured."""


class Checkpoints:
    """The checkpoints of a run, in `step-00000100/` and so on: the latest `keep` of them, and the best.

    The order of samples, the learning rate, beta and dropout's seeds are functions of the step, so a checkpoint needs
    no more than the step's number to restore them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def saved(self) -> list[Saved]:
        """Return the checkpoints that are whole, the latest last."""
        complete = []
        for path in self.folder.glob("step-*"):
            if name := _NAME.fullmatch(path.name):
                with suppress(OSError, ValueError, KeyError, TypeError):  # such a checkpoint is not whole
                    facts = json.loads((path / _FACTS).read_text())
                    complete.append(Saved(int(name[1]), path, facts["held_out_loss"]))
        return sorted(complete)

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, loss: float | None = None
    ) -> None:
        """Write a checkpoint of step `step`; all ranks must call it.

        A process that dies while it writes leaves the earlier checkpoints as they were.
        """
        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = {
            "model": states.get_model_state_dict(model, options=options),
            "optimizer": states.get_optimizer_state_dict(model, optimizer, options=options),
        }
        if ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            Folder(self.folder).clean()
            with atomic_write(self.folder / f"step-{step:08d}") as partial:
                partial.mkdir()
                with (partial / _STATE).open("wb") as stream:  # so that a full disk is an OSError
                    torch.save(state, stream)
                (partial / _FACTS).write_text(json.dumps({"step": step, "held_out_loss": loss}))
            self._forget()
        ranks.wait()

    def _forget(self) -> None:
        """Delete all checkpoints but the latest `keep` and the best."""
        saved = self.saved()
        best = min(((one.loss, one) for one in saved if one.loss is not None), default=(0.0, None))[1]
        for old in saved[: -self.keep]:
            if old != best:
                shutil.rmtree(old.path)

    def load(self, saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        """Load a checkpoint into `model` and `optimizer`; all ranks must call it.

        Raises:
            UserError: the checkpoint is damaged, or of another model.
        """
        state: dict[str, Any] = {"model": {}, "optimizer": {}}
        if ranks.first:
            try:
                state = torch.load(saved.path / _STATE, weights_only=True, map_location="cpu", mmap=True)
            except Exception as error:
                rule, remedy = (
                    f"it can't be read ({type(error).__name__})",
                    "delete this folder; the one before it is used",
                )
                raise UserError("checkpoint", saved.path, rule, remedy) from error
        options = states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.world > 1, strict=False)
        try:
            states.set_model_state_dict(model, state["model"], options=options)
            states.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
        except (RuntimeError, KeyError, ValueError) as error:
            rule = f"it is of another model ({str(error).splitlines()[0]})"
            raise UserError("checkpoint", saved.path, rule, "name another `out`") from error
