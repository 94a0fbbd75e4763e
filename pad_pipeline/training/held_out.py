"""Measure the losses, and the paper's signs of failure, on the samples that are not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pad_pipeline.training.batches import steps
from pad_pipeline.training.examples import Examples
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.order import InOrder
from pad_pipeline.training.probe import Probe
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.sums import count_step, step_labels


@torch.no_grad()
def measure_held_out(
    model: MultimodalModel, examples: Examples, numbers: npt.NDArray[np.int64], batch_size: int, here: Ranks
) -> dict[str, Any]:
    """Measure the held-out samples; all ranks must call it. The model is left in evaluation mode.

    Args:
        model: the model that is trained, between two steps.
        examples: all samples of the training.
        numbers: int64 `[N]`, which of them are held out.
        batch_size: samples in one step, over all ranks.
        here: this process among the ranks.

    Returns:
        Fields of a log entry: both losses, their sum with `beta_end` as the weight of L_patch, and those of `Probe`.
        L_caption is None where the LLM is not run.
    """
    settings = model.settings
    order, probe = InOrder(numbers, batch_size), Probe(model)
    model.eval()
    caption_sum = caption_weight = patch_sum = patch_weight = 0.0
    for step in steps(examples, order, settings, range(order.steps), here.rank, here.world):
        counts = count_step(model, step, here)
        labels = step_labels(settings.patch_loss, step.parts, here)
        means = torch.zeros(2, device=here.device)
        for part in step.parts:
            divisor = counts.patch_divisor(here.device)
            losses = model(part.to(here.device), counts.caption_weight, divisor, labels)
            means += torch.stack([losses.caption, losses.patch])
            probe.add(part, losses.tokens)
        # A step's losses are means, so its sums are these times the weights; the last step has fewer samples.
        caption, patch = here.sum(means).tolist()
        caption_sum += caption * counts.supervised_tokens
        caption_weight += counts.supervised_tokens
        patch_sum += patch * counts.patch_weight
        patch_weight += counts.patch_weight
    caption, patch = caption_sum / max(caption_weight, 1), patch_sum / max(patch_weight, 1e-12)
    return {
        "held_out_caption_loss": caption if settings.runs_llm else None,
        "held_out_patch_loss": patch,
        "held_out_loss": settings.caption_weight * caption + settings.beta_end * patch,
    } | probe.result(here)
