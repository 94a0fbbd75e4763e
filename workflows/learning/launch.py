"""Run a training of `pad train` in this process, under torchrun or on Ray Train; show its progress and a summary."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError

from pad_pipeline.console import errors, note, progress
from pad_pipeline.errors import UserError
from pad_pipeline.storage import write_error
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import train as train_loop
from pad_pipeline.workflows.engine.ray_session import Cluster


def train(job: Job, workers: tuple[int, int] | None = None, cluster: Cluster = Cluster(), max_failures: int = 3) -> str:
    """Train, show the progress, and return a summary of the results.

    Args:
        job: the training.
        workers: the least and the greatest number of Ray Train workers; None trains in this process.
        cluster: the Ray cluster; by default Ray on this machine.
        max_failures: number of times that Ray Train workers may die; -1 for any number.

    Raises:
        UserError: see `pad_pipeline.training.loop.train`; or `cluster` is given without `workers`, or `out` can't be
            written.
    """
    for name, value in (("address", cluster.address), ("gpus", cluster.gpus)):
        if not workers and value not in (None, ""):
            rule = "it goes with `workers` only"
            raise UserError(name, value, rule, "say how many workers, or leave it out")
    first = os.environ.get("RANK", "0") == "0"
    with progress("train", job.settings.steps or None, "loading the models", first) as update:

        def report(entry: dict[str, Any]) -> None:
            caption = "" if entry["caption_loss"] is None else f"L_caption {entry['caption_loss']:.3f}  "
            patch = f"L_patch {entry['patch_loss']:.3f}  beta {entry['beta']:.2f}  " if entry["regions"] else ""
            line = f"{caption}{patch}{entry['samples_per_second']:.1f} samples/s"
            update(total=entry["steps"], completed=entry["step"] + 1, note=line)
            every = max(1, entry["steps"] // 10)
            if not errors.is_terminal and (entry["step"] + 1) % every == 0:
                note(f"step {entry['step'] + 1} of {entry['steps']}: {line}")

        try:
            if workers:
                from pad_pipeline.workflows.learning.ray_train import train_on_ray

                log = train_on_ray(job, workers, cluster, max_failures, report, note)
            else:
                log = train_loop(job, report, note)
        except (OSError, SafetensorError) as error:
            raise write_error(job.out, error) from error
    return summary(log, Path(job.out))


def summary(log: list[dict[str, Any]], out: Path) -> str:
    """Summarize a training: both losses in the first and the last tenth of the steps, and the paths of the results."""
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
    few = " These are few steps: take more steps, or smaller batches." if len(log) < 10 else ""
    count = sum(entry["dropped"] for entry in log)
    dropped = f" Nothing could be learned from {count} samples, see {out / 'dropped.jsonl'}." if count else ""
    if out_of_patch := sum(entry.get("regions_left_out", 0) for entry in log):
        dropped += f" `patch_loss.largest` and `.without` left {out_of_patch:,} regions out of L_patch."
    return f"steps: {len(log)}; {', '.join(changes)}.{dropped} Wrote {out / 'mm_projector.bin'} and {out / 'hf'}.{few}"
