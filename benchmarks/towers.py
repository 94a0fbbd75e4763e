"""Count what vision towers cost: patches, tokens and FLOP for one image, from their published sizes.

Run it with `python -m benchmarks.towers`. It prints the table of docs/howto/llm.md. No weights are needed: a tower of
each size runs once on the meta device, and PyTorch's counter adds up its matrix products and its attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from pad_pipeline.pretrained import quiet
from pad_pipeline.training.towers import TOWERS

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16}
B, L, SO = ({**size, "intermediate_size": width} for size, width in ((BASE, 3072), (LARGE, 4096), (SO400M, 4304)))
SIZES: list[tuple[str, str, dict[str, Any], int, int]] = [
    ("openai/clip-vit-base-patch32", "clip_vision_model", B, 224, 32),
    ("openai/clip-vit-base-patch16", "clip_vision_model", B, 224, 16),
    ("openai/clip-vit-large-patch14", "clip_vision_model", L, 224, 14),
    ("openai/clip-vit-large-patch14-336", "clip_vision_model", L, 336, 14),
    ("google/siglip-large-patch16-384", "siglip_vision_model", L, 384, 16),
    ("google/siglip-so400m-patch14-384", "siglip_vision_model", SO, 384, 14),
    ("google/siglip2-base-patch16-384", "siglip_vision_model", B, 384, 16),
    ("google/siglip2-large-patch16-384", "siglip_vision_model", L, 384, 16),
    ("google/siglip2-so400m-patch14-384", "siglip_vision_model", SO, 384, 14),
    ("google/siglip2-so400m-patch16-384", "siglip_vision_model", SO, 384, 16),
    ("google/siglip2-so400m-patch16-512", "siglip_vision_model", SO, 512, 16),
    ("facebook/dinov2-base", "dinov2", BASE, 518, 14),
    ("facebook/dinov2-large", "dinov2", LARGE, 518, 14),
    ("facebook/dinov2-with-registers-large", "dinov2_with_registers", LARGE, 518, 14),
    ("facebook/dinov3-vitb16-pretrain-lvd1689m", "dinov3_vit", {**B, "num_register_tokens": 4}, 224, 16),
    ("facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3_vit", {**L, "num_register_tokens": 4}, 224, 16),
    ("google/tipsv2-b14", "tipsv2_vision_model", BASE, 448, 14),
    ("google/tipsv2-l14", "tipsv2_vision_model", LARGE, 448, 14),
    ("google/tipsv2-so400m14", "tipsv2_vision_model", {**SO400M, "mlp_ratio": 4304 / 1152}, 448, 14),
]
"""Name on the hub, `model_type`, sizes of the transformer, edge of the image and of a patch in pixels."""


def tower_cost(kind: str, sizes: dict[str, Any], image: int, patch: int) -> tuple[float, int]:
    """Return the FLOP of a tower's forward pass on one image (2 for a multiplication with its addition), and its number
    of parameters."""
    config = AutoConfig.for_model(kind, **sizes, image_size=image, patch_size=patch)
    config._attn_implementation = "eager"
    with quiet(), torch.device("meta"):
        model = AutoModel.from_config(config)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, 3, image, image))
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Print the table."""
    print("| tower | image | patches | tokens | tokens after pixel shuffle | parameters | GFLOP an image |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, kind, sizes, image, patch in SIZES:
        assert kind in TOWERS
        flop, parameters = tower_cost(kind, sizes, image, patch)
        grid = image // patch
        rest = f"{image}" if grid * patch == image else f"{image} ({grid * patch} seen)"
        shuffled = "(odd grid)" if grid % 2 else f"{(grid // 2) ** 2}"
        cells = [name, rest, f"{grid} x {grid}", grid**2, shuffled, f"{parameters / 1e6:.0f} M", f"{flop / 1e9:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
