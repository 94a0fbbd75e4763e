"""`pad train`: the stage-1 loop with its progress and its summary."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from pad_pipeline.errors import UserError
from pad_pipeline.training.loop import train as train_loop
from pad_pipeline.training.settings import TrainSettings
from workflows.settings import read_toml, settings_error

errors = Console(stderr=True)


def train_settings(path: Path | None, options: dict[str, Any]) -> TrainSettings:
    """The settings of a TOML file with `options` put over them.

    Raises:
        UserError: the file can't be read, or a setting is wrong.
    """
    data = read_toml("--settings", path) if path else {}
    try:
        return TrainSettings.model_validate(data | options)
    except ValidationError as error:
        raise settings_error(error, str(path or "pad train")) from error


def train(shards: Path, vision: str, llm: str, out: Path, settings: TrainSettings) -> str:
    """Train, show the progress, and say what came out.

    Raises:
        UserError: see `pad_pipeline.training.loop.train`; or `out` is in use or can't be written.
    """
    leftovers = {"training.json", "log.jsonl"}  # of a training that was stopped or failed
    if out.exists() and (not out.is_dir() or any(path.name not in leftovers for path in out.iterdir())):
        raise UserError("--out", out, "it is there already, and not empty", "name a new folder")
    columns = [TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task("train", total=settings.steps or None, note="loading the models")

        def report(entry: dict[str, Any]) -> None:
            note = _line(entry)
            progress.update(task, total=entry["steps"], completed=entry["step"] + 1, note=note)
            every = max(1, entry["steps"] // 10)
            if not errors.is_terminal and (entry["step"] + 1) % every == 0:
                errors.print(f"step {entry['step'] + 1} of {entry['steps']}: {note}", highlight=False, soft_wrap=True)

        try:
            log = train_loop(shards, vision, llm, out, settings, report)
        except (OSError, SafetensorError) as error:
            rule = f"it can't be written ({getattr(error, 'strerror', None) or error})"
            raise UserError("--out", out, rule, "make room or choose another folder") from error
    return summary(log, out)


def _line(entry: dict[str, Any]) -> str:
    return (
        f"L_caption {entry['caption_loss']:.3f}  L_patch {entry['patch_loss']:.3f}  beta {entry['beta']:.2f}  "
        f"{entry['samples_per_second']:.1f} samples/s"
    )


def summary(log: list[dict[str, Any]], out: Path) -> str:
    """Both losses over the first and the last tenth of the steps, and where the results are."""
    tenth = max(1, len(log) // 10)
    changes = [
        f"{name} {fmean(entry[key] for entry in log[:tenth]):.3f} -> {fmean(entry[key] for entry in log[-tenth:]):.3f}"
        if any(entry[count] for entry in log)
        else f"no {name}: {without}"
        for name, key, count, without in (
            ("L_caption", "caption_loss", "supervised_tokens", "no image has a caption"),
            ("L_patch", "patch_loss", "regions", "no image has a region"),
        )
    ]
    few = " So few steps teach little: raise --steps or lower --batch-size." if len(log) < 10 else ""
    return f"steps: {len(log)}; {', '.join(changes)}. Wrote {out / 'mm_projector.bin'} and {out / 'hf'}.{few}"
