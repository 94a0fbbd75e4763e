"""Count the floating point operations of a training step, and look up a GPU's peak rate."""

from __future__ import annotations

import torch

from pad_pipeline.training.model import MultimodalModel

PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12, "A10": 125e12,
    "V100": 125e12, "4090": 165e12, "3090": 71e12, "T4": 65e12,
}  # fmt: skip
"""Peak FLOP/s in bfloat16 (float16 on V100 and T4) without sparsity, by a part of the GPU's name; from data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of a GPU; None for a CPU or a GPU that `PEAKS` does not contain."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAKS.items() if part in name), None)


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
    projector = 6 * sum(p.numel() for p in model.projector.parameters()) * model.vision_tokens * samples
    return per_weight * (blocks * positions + head * supervised) + attention + tower + projector
