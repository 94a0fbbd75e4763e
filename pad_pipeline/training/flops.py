"""Count the floating point operations of a training step, and look up a GPU's peak rate."""

from __future__ import annotations

import torch

from pad_pipeline.gpus import peak_of
from pad_pipeline.training.model import MultimodalModel


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of a GPU in bfloat16; None for a CPU or an unknown GPU."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def step_flops(model: MultimodalModel, samples: int, positions: int, supervised: int) -> float:
    """Return the FLOP of a step, forward and backward. Work that activation checkpointing repeats does not count.

    The forward pass takes 2 FLOP for each weight and position. The backward pass takes 2 for the gradient of the input,
    and 2 more for the gradient of a weight that is trained. Attention takes 4 for each channel, position and earlier
    position, halved because it is causal, and twice that in the backward pass.

    Args:
        model: the model that is trained.
        samples: number of images in the step.
        positions: number of token positions of all sequences, padding included.
        supervised: number of tokens that went through the output layer.
    """
    config = model.llm.config
    blocks = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2 and "lora" not in name)
    head: int = config.hidden_size * config.vocab_size
    per_weight = 6 if model.settings.llm == "full" else 4
    length = positions / max(samples, 1)
    attention: float = 2 * config.num_hidden_layers * config.hidden_size * length * positions * 3
    tower: float = 2 * sum(p.numel() for p in model.tower.parameters() if p.ndim == 2) * model.grid**2 * samples
    vocabulary = 4 * head * model.vision_tokens * samples if model.settings.patch_loss.needs_words else 0
    projected = sum(p.numel() for name, p in model.projector.named_parameters() if name != "place")
    projector = 6 * projected * model.vision_tokens * samples
    return per_weight * (blocks * positions + head * supervised) + attention + tower + vocabulary + projector
