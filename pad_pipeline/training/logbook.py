"""What is written while a training runs: `log.jsonl`, one entry a step, and TensorBoard's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.packages import OPTIONAL, installed, without
from pad_pipeline.training.ranks import Ranks

LOG = "log.jsonl"
DROPPED = "dropped.jsonl"
"""Samples from which nothing could be learned, with the step and the reason."""


class Logbook:
    """log.jsonl and TensorBoard, written by the first rank.

    Args:
        out: the run's folder.
        entries: of the steps that are done.
        here: this rank.
        wandb: the project of Weights & Biases that gets the same figures; empty for none.
    """

    def __init__(self, out: Path, entries: list[dict[str, Any]], here: Ranks, wandb: str = "") -> None:
        self.entries, self.here = entries, here
        if here.first:
            if wandb:
                _start_wandb(wandb, out)
            write_whole(out / LOG, "".join(json.dumps(entry) + "\n" for entry in entries))
            if dropped := read_log(out, len(entries), DROPPED):
                write_whole(out / DROPPED, "".join(json.dumps(entry) + "\n" for entry in dropped))
            else:
                (out / DROPPED).unlink(missing_ok=True)
            self.stream = (out / LOG).open("a")
            self.board = _board(out / "tensorboard", len(entries)) if installed("tensorboard") else None

    def add(self, entry: dict[str, Any]) -> None:
        """The entry of the next step."""
        self.entries.append(entry)
        if self.here.first:
            self.stream.write(json.dumps(entry) + "\n")
            self.stream.flush()
            for name, value in entry.items():
                if self.board and name != "step" and value is not None:
                    self.board.add_scalar(name, value, entry["step"])

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        if self.here.first:
            self.stream.close()
            if self.board:
                self.board.close()


def _board(folder: Path, steps: int) -> Any:
    """TensorBoard's writer, for a training of which `steps` steps are done."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=steps)


def _start_wandb(project: str, out: Path) -> None:
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb", project, without("wandb"), OPTIONAL["wandb"].install) from error
    if not installed("tensorboard"):
        raise UserError("wandb", project, without("tensorboard"), OPTIONAL["tensorboard"].install)
    # It takes over what goes to TensorBoard; the same folder goes on with the same run.
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    wandb.init(project=project, name=out.name, id=name, dir=str(out), resume="allow", sync_tensorboard=True)


def read_log(out: Path, before: int, name: str = LOG) -> list[dict[str, Any]]:
    """The entries of the steps before `before`."""
    lines = (out / name).read_text().splitlines() if (out / name).is_file() else []
    return [entry for line in lines if (entry := _entry(line)) and entry["step"] < before]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # the line that a dying process was at
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def write_whole(path: Path, text: str) -> None:
    """A small file that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
