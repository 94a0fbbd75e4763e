"""Write a training's log: `log.jsonl` with one entry per step, and TensorBoard's files."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.storage import Folder, atomic_write_text
from pad_pipeline.training.ranks import Ranks

LOG = "log.jsonl"
"""The file with one entry per step."""
DROPPED = "dropped.jsonl"
"""The file that lists the samples from which nothing can be learned, each with step and reason."""


class TrainingLog:
    """Writes log.jsonl and TensorBoard's files, on the first rank. The log begins with the `entries` of earlier steps.
    The project `wandb` of Weights & Biases gets the same figures."""

    def __init__(self, out: Path, entries: list[dict[str, Any]], here: Ranks, wandb: str = "") -> None:
        self.entries, self.here, self.board = entries, here, None
        if here.first:
            if wandb:
                _start_wandb(wandb, out)
            Folder(out).clean()
            atomic_write_text(out / LOG, _lines(entries))
            if dropped := read_log(out, len(entries), DROPPED):
                atomic_write_text(out / DROPPED, _lines(dropped))
            else:
                (out / DROPPED).unlink(missing_ok=True)
            self.stream = (out / LOG).open("a")
            if installed("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                # `purge_step` discards entries of an earlier process for this step and later steps.
                self.board = SummaryWriter(str(out / "tensorboard"), purge_step=len(entries))

    def add(self, entry: dict[str, Any]) -> None:
        """Append the entry of the next step."""
        self.entries.append(entry)
        if self.here.first:
            self.stream.write(_lines([entry]))
            self.stream.flush()
            for name, value in entry.items():
                if self.board and name != "step" and value is not None:
                    self.board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Close the files."""
        if self.here.first:
            self.stream.close()
            if self.board:
                self.board.close()


def _lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _start_wandb(project: str, out: Path) -> None:
    """Start a run of Weights & Biases. It copies the figures that TensorBoard gets."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb", project, not_installed("wandb"), OPTIONAL["wandb"].install) from error
    if not installed("tensorboard"):
        raise UserError("wandb", project, not_installed("tensorboard"), OPTIONAL["tensorboard"].install)
    # With an id that depends only on the folder, a training that is continued goes on in the same run.
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    wandb.init(project=project, name=out.name, id=name, dir=str(out), resume="allow", sync_tensorboard=True)


def read_log(out: Path, before: int, name: str = LOG) -> list[dict[str, Any]]:
    """Read the log entries of all steps before `before`; return an empty list if the file is missing."""
    entries = []
    for line in (out / name).read_text().splitlines() if (out / name).is_file() else []:
        with suppress(ValueError, TypeError, KeyError):  # a line is incomplete if its process was killed
            if (entry := json.loads(line))["step"] < before:
                entries.append(entry)
    return entries
