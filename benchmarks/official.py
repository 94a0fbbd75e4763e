"""Models of official size with seeded random weights, in the official formats: for speed, not for what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SwinConfig,
)

from pad_pipeline.labels import LabelSettings
from pad_pipeline.pretrained import quiet
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.sam.network import SamShape, build_sam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.workflows.models.settings import ModelSettings

SAMS = {
    "vit_b": SamShape(width=768, depth=12, heads=12, global_attention=[2, 5, 8, 11]),
    "vit_l": SamShape(width=1024, depth=24, heads=16, global_attention=[5, 11, 17, 23]),
    "vit_h": SamShape(width=1280, depth=32, heads=16, global_attention=[7, 15, 23, 31]),
}
SWINS: dict[str, dict[str, Any]] = {
    "swin_t": {
        "image_size": 224, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
    },
    "swin_b": {
        "image_size": 384, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
    },
}  # fmt: skip
"""Backbones of Grounding DINO tiny, and of Grounding DINO base."""
TAGS = 4585
"""As many as RAM knows."""
TAGS_ON = 18
"""As many as a photograph gets, about: the ones with the highest scores are on."""


def write_official_size(
    folder: Path, sam: str, swin: str = "swin_t", family: Literal["ram", "ram_plus"] = "ram"
) -> ModelSettings:
    """Write RAM or RAM++ with Swin-L, a Grounding DINO and a SAM into `folder`, once, and return their settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tagger, segmenter = folder / f"{family}.safetensors", folder / f"sam_{sam}.safetensors"
    detector = folder / f"dino_{swin}"
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        if not tagger.is_file():
            network = Ram(RamSettings(family=family), TAGS)
            torch.nn.init.normal_(network.label_embed)
            save_file(network.state_dict(), tagger)
        if not (detector / "model.safetensors").is_file():
            _write_detector(detector, swin)
        if not segmenter.is_file():
            network = build_sam(SAMS[sam])
            for name, parameter in network.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
            save_file(network.state_dict(), segmenter)
    words = [f"{a}{b}{c}" for a in "abcdefghijklmnopq" for b in "abcdefghijklmnopq" for c in "abcdefghijklmnopq"]
    (folder / "tags.txt").write_text("".join(f"{word}\n" for word in words[:TAGS]))
    return ModelSettings(
        annotators=(
            TaggerSettings(family=family, weights=str(tagger), tag_list=str(folder / "tags.txt"), threshold=0.0),
            DetectorSettings(model=str(detector), unboxable="", box_threshold=0.0),
            SegmenterSettings(weights=str(segmenter)),
        ),
        llm=LabelSettings(llm=""),
    )


def _write_detector(folder: Path, swin: str) -> None:
    fixed = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", 103: "[MASK]", DOT: ".", 1029: "?"}
    letters = iter([*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")])
    vocabulary = {fixed.get(index) or next(letters, f"[unused{index}]"): index for index in range(30522)}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWINS[swin], out_features=["stage2", "stage3", "stage4"]),
        text_config=BertConfig(), disable_custom_kernels=True,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    GroundingDinoImageProcessorPil().save_pretrained(folder)
