"""What a step costs, in floating point operations, and what share of the machine's peak that is."""

from __future__ import annotations

import torch

from pad_pipeline.training.model import MultimodalModel

PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12, "A10": 125e12,
    "V100": 125e12, "4090": 165e12, "3090": 71e12, "T4": 65e12,
}  # fmt: skip
"""FLOP/s in bfloat16 (float16 on V100 and T4) without sparsity, from the makers' data sheets, by a part of the name."""


def peak(device: torch.device) -> float | None:
    """Of a GPU; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAKS.items() if part in name), None)


def flops_of(model: MultimodalModel, samples: int, positions: int, supervised: int) -> float:
    """Useful FLOP of a step, forward and backward, without what is computed twice.

    Forward 2 for each weight and position; backward 2 again for the gradient that goes on, and 2 for that of the weight
    where it learns. Attention takes 4 more for each number of the width, position, and position before it, halved
    because it is causal, and twice that backward.

    Args:
        model: what is trained.
        samples: images in the step.
        positions: of all sequences, padding included.
        supervised: tokens that went through the output layer.
    """
    config = model.llm.config
    blocks = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2 and "lora" not in name)
    head = config.hidden_size * config.vocab_size
    learns = model.settings.llm == "full"
    passes = 6 if learns else 4
    length = positions / max(samples, 1)
    attention = 2 * config.num_hidden_layers * config.hidden_size * length * positions * 3
    tower = 2 * sum(p.numel() for p in model.tower.parameters() if p.ndim == 2) * model.grid**2 * samples
    projector = 6 * sum(p.numel() for p in model.projector.parameters()) * model.vision_tokens * samples
    return passes * (blocks * positions + head * supervised) + attention + tower + projector
