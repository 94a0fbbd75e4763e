"""Save and load checkpoints: the trainable parameters, the optimizer's state and the number of the step.

A checkpoint is written atomically. It can be loaded with any number of ranks. A change of any of its bytes is noticed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as states

from pad_pipeline.errors import UserError
from pad_pipeline.shards.seal import UNSEALED, seal, seal_problem
from pad_pipeline.storage import Folder, atomic_write
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.weights import file_sha256

_STATE, _FACTS = "state.pt", "facts.json"
_NAME = re.compile(r"step-\d{8,}")


class SavedCheckpoint(NamedTuple):
    """A checkpoint on disk."""

    step: int
    """The number of completed steps."""
    path: Path
    loss: float | None
    """The loss on the held-out samples; None if it was not measured."""
    sha256: str
    """The hash of the file with the state."""

    def problem(self) -> str:
        """Read the file with the state, and return what is wrong with it; empty if no byte has changed."""
        try:
            found = file_sha256(self.path / _STATE)
        except OSError as error:
            return f"its {_STATE} can't be read ({error.strerror})"
        return "" if found == self.sha256 else f"its {_STATE} has changed since it was written (sha256)"


class Checkpoints:
    """The checkpoints of a training, in `step-00000100/` and so on. The best one and the latest `keep` are kept.

    The order of samples, the learning rate, beta and dropout's seeds depend only on the step, so a checkpoint does not
    store them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def saved(self) -> list[SavedCheckpoint]:
        """Return the checkpoints whose facts are whole, the latest last."""
        complete = []
        for path in self.folder.glob("step-*"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # these errors mean a damaged checkpoint
                content = (path / _FACTS).read_bytes()
                facts = json.loads(content)
                # A folder that the user renamed is left alone.
                if path.name == f"step-{facts['step']:08d}" and not seal_problem(content):
                    complete.append(SavedCheckpoint(facts["step"], path, facts["held_out_loss"], facts["sha256"]))
        return sorted(complete)

    def latest(self, say: Callable[[str], None]) -> SavedCheckpoint | None:
        """Return the latest checkpoint that is whole, or None if there is none at all. `say` is called with a message
        for each damaged one after it.

        Raises:
            UserError: all checkpoints are damaged.
        """
        whole = {saved.path: saved for saved in self.saved()}
        there = sorted((path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)
        for path in there:
            problem = whole[path].problem() if path in whole else f"its {_FACTS} is damaged"
            if not problem:
                return whole[path]
            say(f"note: the checkpoint {path} is left out: {problem}.")
        if there:
            raise UserError("out", self.folder, "all of its checkpoints are damaged", "delete them to begin again")
        return None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, loss: float | None = None
    ) -> None:
        """Write a checkpoint. `step` is the number of completed steps. All ranks must call this method."""
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
                with (partial / _STATE).open("wb") as stream:  # so that a full disk raises an OSError
                    torch.save(state, stream)
                facts = {"step": step, "held_out_loss": loss, "sha256": file_sha256(partial / _STATE), "seal": UNSEALED}
                (partial / _FACTS).write_text(json.dumps(facts))
                seal(partial / _FACTS)
            self._delete_old()
        ranks.wait()

    def _delete_old(self) -> None:
        """Delete all checkpoints but the latest `keep` and the best."""
        saved = self.saved()
        best = min(((one.loss, one) for one in saved if one.loss is not None), default=(0.0, None))[1]
        for old in saved[: -self.keep]:
            if old != best:
                shutil.rmtree(old.path)

    def load(self, saved: SavedCheckpoint, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        """Load a checkpoint into `model` and `optimizer`. All ranks must call it.

        Raises:
            UserError: the checkpoint is damaged, or belongs to another model.
        """
        state: dict[str, Any] = {"model": {}, "optimizer": {}}
        if ranks.first:
            try:
                state = torch.load(saved.path / _STATE, weights_only=True, map_location="cpu", mmap=True)
            except Exception as error:
                rule = f"it can't be read ({type(error).__name__})"
                raise UserError("checkpoint", saved.path, rule, "delete it, to go on from the one before it") from error
        options = states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.world > 1, strict=False)
        try:
            states.set_model_state_dict(model, state["model"], options=options)
            states.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
        except (RuntimeError, KeyError, ValueError) as error:
            rule = f"it is of another model ({str(error).splitlines()[0]})"
            raise UserError("checkpoint", saved.path, rule, "name another `out`") from error
