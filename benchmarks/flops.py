"""FLOPs of the official models for one image, from their configurations: `python -m benchmarks.flops`.

The networks are built on torch's meta device, without weights, and run on empty tensors; matrix products and
convolutions are counted, with two operations for a multiply-add. No file is read or fetched.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    SwinConfig,
)
from transformers.models.grounding_dino import modeling_grounding_dino as dino
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm

from benchmarks.official import SAMS, SWINS
from pad_pipeline.stages.sam.network import build_sam

WORDS, BOXES = 64, 16
"""Of a prompt in tokens; of an image."""
PIXELS = (800, 1066)
"""Height and width to which Grounding DINO resizes an image of 4 x 3."""
SWIN_L = {"image_size": 384, "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
HIERA_L = {
    "hidden_size": 144, "num_attention_heads": 2, "blocks_per_stage": [2, 6, 36, 4],
    "embed_dim_per_stage": [144, 288, 576, 1152], "num_attention_heads_per_stage": [2, 4, 8, 16],
    "window_size_per_stage": [8, 4, 16, 8], "global_attention_blocks": [23, 33, 43],
}  # fmt: skip


def teraflops(work: Callable[..., Any], *inputs: Any, **named: Any) -> tuple[float, Any]:
    """Call `work`; return its operations, in 10^12, and its result."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), torch.device("meta"):
        result = work(*inputs, **named)
    return counter.get_total_flops() / 1e12, result


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def sam3() -> dict[str, float]:
    """Return the operations of SAM 3 in 10^12: `image`, once for an image; `text`, once for a tag and worker; `phrase`,
    once for an (image, tag) pair; `masks`, once for a pair with a box above the threshold."""
    with torch.device("meta"):
        model = Sam3Model(Sam3Config()).eval().to("meta")
    image, vision = teraflops(model.get_vision_features, empty(1, 3, 1008, 1008))
    text, words = teraflops(model.get_text_features, input_ids=empty(1, 32, dtype=torch.long))
    words = words.pooler_output
    maps, positions = list(vision.fpn_hidden_states[:-1]), vision.fpn_position_encoding[:-1]
    encoded, fused = teraflops(model.detr_encoder, [maps[-1]], words, [positions[-1]])
    shape = torch.tensor([maps[-1].shape[-2:]])  # its values are read, so it is not on the meta device
    at = {"vision_pos_encoding": fused.pos_embeds_flattened, "spatial_shapes": shape}
    decoded, found = teraflops(model.detr_decoder, fused.last_hidden_state, words, **at)
    queries = found.intermediate_hidden_states[-1][:, :BOXES]
    masks, _ = teraflops(model.mask_decoder, queries, maps, fused.last_hidden_state, words)
    return {"image": image, "text": text, "phrase": encoded + decoded, "masks": masks}


def detectors() -> Iterator[tuple[str, float]]:
    """Yield the name of each detector, and its operations for one image and one prompt in 10^12."""
    forms: list[tuple[str, Any, Any, dict[str, Any], int]] = [
        ("Grounding DINO tiny", GroundingDinoConfig, GroundingDinoForObjectDetection, SWINS["swin_t"], 2),
        ("Grounding DINO base", GroundingDinoConfig, GroundingDinoForObjectDetection, SWINS["swin_b"], 2),
        (
            "MM Grounding DINO, LLMDet tiny",
            MMGroundingDinoConfig,
            MMGroundingDinoForObjectDetection,
            SWINS["swin_t"],
            2,
        ),
        (
            "MM Grounding DINO, LLMDet base",
            MMGroundingDinoConfig,
            MMGroundingDinoForObjectDetection,
            SWINS["swin_b"],
            2,
        ),
        ("MM Grounding DINO, LLMDet large", MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, SWIN_L, 1),
    ]
    ones = torch.ones(1, WORDS, WORDS, dtype=torch.bool, device="meta")
    for module in (dino, mm):  # which words belong together is read from the words, and there are none here
        module.generate_masks_with_special_tokens_and_transfer_map = lambda ids, *_, **__: (
            ones,
            empty(*ids.shape, dtype=torch.long),
        )
    for name, config, kind, swin, first in forms:
        backbone = SwinConfig(**swin, out_features=[f"stage{stage}" for stage in range(first, 5)])
        with torch.device("meta"):
            model = (
                kind(config(backbone_config=backbone, num_feature_levels=6 - first, disable_custom_kernels=True))
                .eval()
                .to("meta")
            )
        ids = empty(1, WORDS, dtype=torch.long)
        mask = torch.ones(1, *PIXELS, dtype=torch.long, device="meta")
        yield name, teraflops(model, empty(1, 3, *PIXELS), ids, torch.zeros_like(ids), torch.ones_like(ids), mask)[0]
    with torch.device("meta"):
        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        owls = {
            "OWLv2 base": Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}),
            "OWLv2 large": Owlv2Config(
                text_config=text, vision_config=large | {"image_size": 1008, "patch_size": 14}, projection_dim=768
            ),
        }
        for name, owl in owls.items():
            edge = owl.vision_config.image_size
            model = Owlv2ForObjectDetection(owl).eval().to("meta")
            yield name, teraflops(model.image_embedder, empty(1, 3, edge, edge))[0]
        swin_t = SwinConfig(**SWINS["swin_t"] | {"image_size": 640}, out_indices=[2, 3, 4])
        model = (
            OmDetTurboForObjectDetection(
                OmDetTurboConfig(backbone_config=swin_t, apply_layernorm_after_vision_backbone=False)
            )
            .eval()
            .to("meta")
        )
        backbone, features = teraflops(model.vision_backbone, empty(1, 3, 640, 640))
        encoder, _ = teraflops(model.encoder, features, return_dict=True)
        yield "OmDet-Turbo tiny, without its decoder", backbone + encoder


def segmenters() -> Iterator[tuple[str, float]]:
    """Yield the name of each segmenter, and the operations of its image encoder in 10^12."""
    with torch.device("meta"):
        for name, shape in SAMS.items():
            sam = build_sam(shape).eval().to("meta")
            size = name.removeprefix("vit_").upper()
            yield f"SAM ViT-{size}", teraflops(sam.image_encoder, empty(1, 3, 1024, 1024))[0]
        for name, hiera in (("tiny", {}), ("large", HIERA_L)):
            widths: Any = hiera.get("embed_dim_per_stage", [96, 192, 384, 768])
            backbone = {"model_type": "sam2_hiera_det_model", **hiera}
            config = Sam2Config(vision_config={"backbone_config": backbone, "backbone_channel_list": widths[::-1]})
            model = Sam2Model(config).eval().to("meta")
            yield f"SAM 2.1 {name}", teraflops(model.get_image_embeddings, empty(1, 3, 1024, 1024))[0]


def main() -> None:
    """Print the table, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write; the console without it")
    options = parser.parse_args()
    rows = [*detectors(), *segmenters(), *((f"SAM 3, {part}", found) for part, found in sam3().items())]
    text = "\n".join(["| model | TFLOP |", "| --- | --- |", *(f"| {name} | {found:.3f} |" for name, found in rows)])
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
