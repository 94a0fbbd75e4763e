"""Checkpoints: what learns, its optimizer and the step; whole or not there; loadable on another number of ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pad_pipeline.errors import UserError
from pad_pipeline.training.ranks import Ranks

_NAME = re.compile(r"step-([0-9]{8,})")
STATE, FACTS = "state.pt", "facts.json"


class Saved(NamedTuple):
    """A checkpoint on disk."""

    step: int
    """Steps that were done."""
    path: Path
    loss: float | None
    """On the held-out samples."""


class Checkpoints:
    """The checkpoints of a run, in `step-00000100/` and so on.

    Order of samples, learning rate, beta and dropout's seeds are functions of the step, so the step is all that has to
    be known of them.

    Args:
        folder: where they lie.
        keep: how many of the latest are kept, beside the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def saved(self) -> list[Saved]:
        """The whole ones, the latest last."""
        found = []
        for path in self.folder.glob("step-*"):
            if name := _NAME.fullmatch(path.name):
                with suppress(OSError, ValueError, KeyError, TypeError):  # then it is not whole
                    facts = json.loads((path / FACTS).read_text())
                    found.append(Saved(int(name[1]), path, facts["held_out_loss"]))
        return sorted(found)

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, loss: float | None = None
    ) -> None:
        """Write one; all ranks must call it. A process that dies meanwhile leaves what was there before."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = {
            "model": get_model_state_dict(model, options=options),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        }
        if ranks.first:
            self._write(step, state, {"step": step, "held_out_loss": loss})
            self._forget()
        ranks.wait()

    def _write(self, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*.partial"):
            shutil.rmtree(left)
        partial = self.folder / f".step-{step:08d}.partial"
        partial.mkdir()
        with (partial / STATE).open("wb") as stream:
            torch.save(state, stream)
            _sync(stream.fileno())
        with (partial / FACTS).open("w") as text:
            json.dump(facts, text)
            text.flush()
            _sync(text.fileno())
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            shutil.rmtree(final)  # of the same step, from before a stop
        partial.rename(final)
        for folder in (final, self.folder):
            handle = os.open(folder, os.O_RDONLY)
            _sync(handle)
            os.close(handle)

    def _forget(self) -> None:
        saved = self.saved()
        best = min(((one.loss, one) for one in saved if one.loss is not None), default=(0.0, None))[1]
        for old in saved[: -self.keep]:
            if old != best:
                shutil.rmtree(old.path)

    def load(self, saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        """Put a checkpoint into model and optimizer; all ranks must call it.

        Raises:
            UserError: it is damaged, or another model's.
        """
        state: dict[str, Any] = {"model": {}, "optimizer": {}}
        if ranks.first:
            try:
                state = torch.load(saved.path / STATE, weights_only=True, map_location="cpu", mmap=True)
            except Exception as error:
                rule = f"it can't be read ({type(error).__name__})"
                raise UserError(
                    "checkpoint", saved.path, rule, "delete this folder; the one before it is used"
                ) from error
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.world > 1, strict=False)
        try:
            set_model_state_dict(model, state["model"], options=options)
            set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
        except (RuntimeError, KeyError, ValueError) as error:
            rule = f"it is of another model ({str(error).splitlines()[0]})"
            raise UserError("checkpoint", saved.path, rule, "train into a new `out`") from error


def _sync(handle: int) -> None:
    os.fsync(handle)
