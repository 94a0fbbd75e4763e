"""Stage 1: one plain PyTorch loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from pad_pipeline.errors import UserError
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.data import Batch, Examples, batches
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.losses import patch_loss_weight
from pad_pipeline.training.model import AlignModel
from pad_pipeline.training.projector import save_projector
from pad_pipeline.training.settings import TrainSettings

Report = Callable[[dict[str, Any]], None]


def train(
    shards: Path, vision: str, llm: str, out: Path, settings: TrainSettings, report: Report = lambda entry: None
) -> list[dict[str, Any]]:
    """Train the projector on PAD shards.

    Args:
        shards: what `pad build` or `pad import` wrote.
        vision: folder or hub name of the vision tower.
        llm: folder or hub name of the LLM that the shards were built for.
        out: gets `log.jsonl`, `training.json`, `mm_projector.bin` and the Hugging Face folder `hf/`.
        settings: everything else.
        report: is given each step's log entry.

    Returns:
        The log: one entry a step, with both losses, beta, learning rate, gradient norm, what was in the batch and
        samples per second.

    Raises:
        UserError: something does not fit, or the loss is no number any more.
    """
    folder = open_shards(shards, "--shards")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AlignModel(vision, llm, folder.run, settings, device)
    examples = Examples(folder, model.tokenizer, model.mean, model.std, settings)
    settings = settings.model_copy(update={"batch_size": min(settings.batch_size, len(examples))})
    steps = settings.steps or max(1, math.ceil(settings.epochs * len(examples) / settings.batch_size))
    optimiser = torch.optim.AdamW(
        model.projector.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, math.ceil(settings.warmup * steps), steps)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"shards": str(shards), "vision": vision, "llm": llm, "fingerprints": folder.run.fingerprints}
    facts |= {"view": folder.run.view.model_dump(), "settings": settings.model_dump()}
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    log: list[dict[str, Any]] = []
    with (out / "log.jsonl").open("w") as stream:
        started = time.monotonic()
        for step, parts in enumerate(batches(examples, settings, steps)):
            beta = settings.beta(step, steps)
            entry = {"step": step, "beta": beta, "learning_rate": schedule.get_last_lr()[0]}
            entry |= take_step(model, optimiser, parts, beta, settings, device)
            schedule.step()
            now = time.monotonic()
            entry["samples_per_second"] = settings.batch_size / (now - started)
            started = now
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            log.append(entry)
            report(entry | {"steps": steps})
    if not any(entry["supervised_tokens"] or entry["regions"] for entry in log):
        raise UserError("--shards", shards, "no sample has a caption or a region in view", "give shards with either")
    save_projector(model.projector, out / "mm_projector.bin")
    export_llava(model, out / "hf")
    return log


def take_step(
    model: AlignModel,
    optimiser: torch.optim.Optimizer,
    parts: list[Batch],
    beta: float,
    settings: TrainSettings,
    device: torch.device,
) -> dict[str, Any]:
    """One step of the optimiser over its micro-batches; both losses are means over the whole step.

    Raises:
        UserError: the loss is not finite.
    """
    tokens = sum(len(part.supervised) for part in parts)
    patch_weight = torch.stack([patch_loss_weight(part.coverage, settings.patch_loss) for part in parts]).sum()
    optimiser.zero_grad(set_to_none=True)
    losses = torch.zeros(2, device=device)
    try:
        for part in parts:
            caption, aligned = model(part.to(device), max(tokens, 1), patch_weight.to(device))
            (caption + beta * aligned).backward()
            losses += torch.stack([caption, aligned]).detach()
    except torch.OutOfMemoryError as error:
        rule = "the GPU has not enough memory for so many samples at a time"
        raise UserError("--micro-batch", len(parts[0].keys), rule, "lower it; the results stay the same") from error
    norm = torch.nn.utils.clip_grad_norm_(model.projector.parameters(), settings.max_grad_norm)
    caption_value, patch_value = losses.tolist()
    if not math.isfinite(caption_value + patch_value):
        keys = ", ".join([key for part in parts for key in part.keys][:8])
        rule = (
            f"the loss of a step is no finite number (L_caption {caption_value}, L_patch {patch_value}; images {keys})"
        )
        raise UserError("--learning-rate", settings.learning_rate, rule, "lower it, or look at these images")
    optimiser.step()
    return {
        "loss": caption_value + beta * patch_value,
        "caption_loss": caption_value,
        "patch_loss": patch_value,
        "grad_norm": float(norm),
        "supervised_tokens": tokens,
        "regions": sum(len(part.coverage) for part in parts),
    }
