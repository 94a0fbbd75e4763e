"""`pad train`: the loop with its progress and its summary; in this process, under torchrun, or on Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from pad_pipeline.console import errors
from pad_pipeline.errors import UserError
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import train as train_loop
from pad_pipeline.training.settings import TrainSettings, settings_of
from pad_pipeline.workflows.toml import read_toml, settings_error


def train_settings(settings: Path | None, options: dict[str, Any], stage: int = 1) -> TrainSettings:
    """Return the settings of the TOML file `settings`, if there is one, with `options` put over them.

    Raises:
        UserError: the file can't be read, or a setting is wrong.
    """
    data = read_toml("settings", settings) if settings else {}
    try:
        return settings_of(stage).model_validate(data | options)
    except ValidationError as error:
        raise settings_error(error, str(settings or "")) from error


class Launch(NamedTuple):
    """Where a training runs."""

    workers: tuple[int, int] = (0, 0)
    """Fewest and most workers of Ray Train; 0 for this process, or those that torchrun started."""
    address: str = ""
    """Of a Ray cluster."""
    max_failures: int = 3
    """How often workers may die."""


def parse_workers(workers: str) -> tuple[int, int]:
    """`4` -> (4, 4); `2-8` -> (2, 8).

    Raises:
        UserError: it is neither.
    """
    low, dash, high = workers.partition("-")
    if low.isdecimal() and (not dash or high.isdecimal()) and 1 <= int(low) <= int(high or low):
        return int(low), int(high or low)
    raise UserError("workers", workers, "it should be a number, or fewest-most", "write for instance 4, or 2-8")


def train(job: Job, launch: Launch = Launch()) -> str:
    """Train, show the progress, and say what came out.

    Raises:
        UserError: see `pad_pipeline.training.loop.train`; or `out` can't be written.
    """
    quiet = not errors.is_terminal or os.environ.get("RANK", "0") != "0"
    columns = [TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=quiet) as progress:
        task = progress.add_task("train", total=job.settings.steps or None, note="loading the models")

        def report(entry: dict[str, Any]) -> None:
            note = _line(entry)
            progress.update(task, total=entry["steps"], completed=entry["step"] + 1, note=note)
            every = max(1, entry["steps"] // 10)
            if not errors.is_terminal and (entry["step"] + 1) % every == 0:
                say(f"step {entry['step'] + 1} of {entry['steps']}: {note}")

        def say(text: str) -> None:
            errors.print(text, highlight=False, soft_wrap=True, markup=False)

        try:
            if launch.workers[1]:
                from pad_pipeline.workflows.learning.ray_train import train_on_ray

                log = train_on_ray(job, launch.workers, launch.address, launch.max_failures, report, say)
            else:
                log = train_loop(job, report, say)
        except (OSError, SafetensorError) as error:
            at = f", {error.filename}" if isinstance(error, OSError) and error.filename else ""
            rule = f"it can't be written ({getattr(error, 'strerror', None) or error}{at})"
            raise UserError("out", job.out, rule, "make room, then run the same command again") from error
    return summary(log, Path(job.out))


def _line(entry: dict[str, Any]) -> str:
    caption = "" if entry["caption_loss"] is None else f"L_caption {entry['caption_loss']:.3f}  "
    return (
        f"{caption}L_patch {entry['patch_loss']:.3f}  beta {entry['beta']:.2f}  "
        f"{entry['samples_per_second']:.1f} samples/s"
    )


def summary(log: list[dict[str, Any]], out: Path) -> str:
    """Both losses over the first and the last tenth of the steps, and where the results are."""
    tenth = max(1, len(log) // 10)
    changes = [
        f"{name} {fmean(entry[key] for entry in log[:tenth]):.3f} -> {fmean(entry[key] for entry in log[-tenth:]):.3f}"
        if all(entry[key] is not None for entry in log) and any(entry[count] for entry in log)
        else f"no {name}: {without}"
        for name, key, count, without in (
            ("L_caption", "caption_loss", "supervised_tokens", "its weight is 0, or no image has a caption"),
            ("L_patch", "patch_loss", "regions", "no image has a region"),
        )
    ]
    few = " So few steps teach little: take more steps, or smaller batches." if len(log) < 10 else ""
    dropped = sum(entry["dropped"] for entry in log)
    left = f" {dropped} samples taught nothing, see {out / 'dropped.jsonl'}." if dropped else ""
    return f"steps: {len(log)}; {', '.join(changes)}.{left} Wrote {out / 'mm_projector.bin'} and {out / 'hf'}.{few}"
