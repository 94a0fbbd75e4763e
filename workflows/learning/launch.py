"""Start a training of `pad train` in this process, under torchrun or on Ray Train; show its progress and a summary."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError

from pad_pipeline.console import errors, note, progress
from pad_pipeline.errors import UserError
from pad_pipeline.storage import write_error
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import train as train_loop
from pad_pipeline.training.settings import TrainSettings, settings_of
from pad_pipeline.workflows.toml import read_toml, settings_error


def train_settings(settings: Path | None, options: dict[str, Any], stage: int = 1) -> TrainSettings:
    """Read the TOML file `settings` for a training stage, if there is one, and override its settings with `options`.

    Raises:
        UserError: the file can't be read, or a setting is wrong.
    """
    data = read_toml("settings", settings) if settings else {}
    try:
        return settings_of(stage).model_validate(data | options)
    except ValidationError as error:
        raise settings_error(error, str(settings or "")) from error


class Launch(NamedTuple):
    """Where a training runs, and how often its workers may die."""

    workers: tuple[int, int] = (0, 0)
    """Fewest and most workers of Ray Train; 0 runs the training in this process, or in those that torchrun started."""
    address: str = ""
    """Address of a Ray cluster; empty starts Ray on this machine."""
    max_failures: int = 3
    """How often workers of Ray Train may die before the training gives up; -1 for any number."""


def parse_workers(workers: str) -> tuple[int, int]:
    """Parse a number of workers, or a range: `4` gives (4, 4), and `2-8` gives (2, 8).

    Raises:
        UserError: `workers` is neither.
    """
    low, dash, high = workers.partition("-")
    if low.isdecimal() and (not dash or high.isdecimal()) and 1 <= int(low) <= int(high or low):
        return int(low), int(high or low)
    raise UserError("workers", workers, "it should be a number, or fewest-most", "write for instance 4, or 2-8")


def train(job: Job, launch: Launch = Launch()) -> str:
    """Train, show the progress, and return a summary of the results.

    Raises:
        UserError: see `pad_pipeline.training.loop.train`; or `out` can't be written.
    """
    first = os.environ.get("RANK", "0") == "0"
    with progress("train", job.settings.steps or None, "loading the models", first) as update:

        def report(entry: dict[str, Any]) -> None:
            caption = "" if entry["caption_loss"] is None else f"L_caption {entry['caption_loss']:.3f}  "
            line = f"{caption}L_patch {entry['patch_loss']:.3f}  beta {entry['beta']:.2f}  "
            line += f"{entry['samples_per_second']:.1f} samples/s"
            update(total=entry["steps"], completed=entry["step"] + 1, note=line)
            every = max(1, entry["steps"] // 10)
            if not errors.is_terminal and (entry["step"] + 1) % every == 0:
                note(f"step {entry['step'] + 1} of {entry['steps']}: {line}")

        try:
            if launch.workers[1]:
                from pad_pipeline.workflows.learning.ray_train import train_on_ray

                log = train_on_ray(job, launch.workers, launch.address, launch.max_failures, report, note)
            else:
                log = train_loop(job, report, note)
        except (OSError, SafetensorError) as error:
            raise write_error(job.out, error) from error
    return summary(log, Path(job.out))


def summary(log: list[dict[str, Any]], out: Path) -> str:
    """Return a sentence with L_caption and L_patch at the start and at the end, and with the paths of the results. The
    start and the end are means over the first and the last tenth of the steps."""
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
