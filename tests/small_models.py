"""Small, randomly initialized members of the real model families, in the formats of the official checkpoints.

They find nothing sensible. They run the real code from end to end in seconds, on a machine without network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from examples.miniature.llm import build_tokenizer as build_bpe
from examples.miniature.members import as_toml
from pad_pipeline.pretrained import quiet
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.sam.network import SamShape, build_sam
from tests.hub_models import write_dino

RAM_SHAPE = RamSettings(
    image_size=96, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window=6,
    embed_width=32, head_width=48, head_heads=4, head_feed_forward=96, descriptions=3,
)  # fmt: skip
SAM_SHAPE = SamShape(image_size=128, width=32, depth=2, heads=2, global_attention=[1])
VISION_SIZE, VISION_PATCH = 112, 14
"""Of the small CLIP: a grid of 8 x 8."""


def write_small_models(folder: Path, tags: list[str], texts: Iterable[str], seed: int = 0, family: str = "ram") -> Path:
    """Write tagger, detector, segmenter, LLM and vision tower into `folder`, and the TOML that names them.

    Args:
        folder: made if need be.
        tags: the tagger's tag list.
        texts: what the LLM's tokenizer is trained on.
        seed: of all weights.
        family: the tagger's: "ram" or "ram_plus".

    Returns:
        The path of `models.toml`, for `--models`. The vision tower is in `folder / "clip"`, the LLM in
        `folder / "llm"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        _write_tagger(folder, tags, family)
        write_dino(folder / "detector", tags)
        save_file(build_sam(SAM_SHAPE).state_dict(), folder / "segmenter.safetensors")
        _write_llm(folder / "llm", [*tags, *texts])
        _write_vision(folder / "clip")
    path = folder / "models.toml"
    path.write_text(_toml(family), "utf-8")
    return path


def _toml(family: str) -> str:
    tagger = {"family": family, "weights": "tagger.safetensors", "tag_list": "tags.txt", "threshold": 0.5}
    return "# Small models with random weights: they run the whole chain and know nothing.\n" + as_toml(
        {
            "tagger": tagger | RAM_SHAPE.model_dump(exclude={"family"}),
            "detector": {"model": "detector", "box_threshold": 0.3},
            "segmenter": {"weights": "segmenter.safetensors"},
            "llm": {"llm": "llm"},
        }
    )


def _write_tagger(folder: Path, tags: list[str], family: str) -> None:
    settings = RAM_SHAPE.model_copy(update={"family": family})
    network = Ram(settings, len(tags))
    for parameter in (network.label_embed, network.fc.weight):
        torch.nn.init.normal_(parameter, std=1.0)  # so that tags differ, and images too
    save_file(network.state_dict(), folder / "tagger.safetensors")
    (folder / "tags.txt").write_text("\n".join(tags) + "\n", "utf-8")


def _write_llm(folder: Path, texts: list[str]) -> None:
    tokenizer = build_bpe(texts, ["<unk>", "<s>", "</s>"], words=400)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _write_vision(folder: Path) -> None:
    config = CLIPVisionConfig(
        image_size=VISION_SIZE, patch_size=VISION_PATCH, hidden_size=48, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": VISION_SIZE}, crop_size={"height": VISION_SIZE, "width": VISION_SIZE}
    ).save_pretrained(folder)
