"""Convert official `groundingdino_*.pth` files into model folders of transformers."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SwinConfig,
)

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import quiet
from pad_pipeline.weights import check_numbers, convert_once, family_of, read_tensors

_SWIN = "model.backbone.conv_encoder.model."
_ENCODER, _DECODER = "model.encoder.layers.#.", "model.decoder.layers.#."
RENAMES: dict[tuple[str, str], dict[str, str]] = {
    ("backbone.0.patch_embed.", _SWIN + "embeddings."): {"proj": "patch_embeddings.projection", "norm": "norm"},
    ("backbone.0.layers.#.blocks.#.", _SWIN + "encoder.layers.#.blocks.#."): {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "attn.": "attention.self.", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    },
    ("backbone.0.layers.#.", _SWIN + "encoder.layers.#."): {"downsample.": "downsample."},
    ("transformer.encoder.text_layers.#.", _ENCODER + "text_enhancer_layer."): {
        "self_attn.": "self_attn.", "linear": "fc", "norm1": "layer_norm_before", "norm2": "layer_norm_after",
    },
    ("transformer.encoder.fusion_layers.#.", _ENCODER + "fusion_layer."): {
        "gamma_v": "vision_param", "gamma_l": "text_param", "layer_norm_v": "layer_norm_vision",
        "layer_norm_l": "layer_norm_text", "attn.v_proj": "attn.vision_proj", "attn.l_proj": "attn.text_proj",
        "attn.values_v_proj": "attn.values_vision_proj", "attn.values_l_proj": "attn.values_text_proj",
        "attn.out_v_proj": "attn.out_vision_proj", "attn.out_l_proj": "attn.out_text_proj",
    },
    ("transformer.encoder.layers.#.", _ENCODER + "deformable_layer."): {
        "self_attn.": "self_attn.", "linear": "fc", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm",
    },
    ("transformer.decoder.layers.#.", _DECODER): {
        "cross_attn.": "encoder_attn.", "norm1": "encoder_attn_layer_norm", "ca_text.": "encoder_attn_text.",
        "catext_norm": "encoder_attn_text_layer_norm", "self_attn.": "self_attn.", "norm2": "self_attn_layer_norm",
        "linear": "fc", "norm3": "final_layer_norm",
    },
    ("transformer.decoder.", "model.decoder."): {"norm.": "layer_norm.", "ref_point_head.": "reference_points_head."},
    ("transformer.", "model."): {
        "level_embed": "level_embed", "tgt_embed.": "query_position_embeddings.", "enc_output": "enc_output",
        "enc_out_bbox_embed.": "encoder_output_bbox_embed.",
    },
    ("", "model."): {
        "input_proj.": "input_proj_vision.", "bert.": "text_backbone.", "feat_map.": "text_projection.",
    },
    ("", ""): {"bbox_embed.0.": "bbox_embed.0."},
}  # fmt: skip
"""Maps the prefix of a module's tensors from official files to transformers, and then those of its parts.

`#` stands for a number.
"""
_LEFT_OUT = re.compile(
    r"bert\.pooler\.|bert\.embeddings\.position_ids|.*\.relative_position_index|label_enc\."
    r"|transformer\.decoder\.bbox_embed\.|bbox_embed\.[1-9]"
)
"""The official tensors to leave out: unused, computed from others, or second names of others."""
_HEADS, _LEVELS, _HEAD_WIDTH_OF_BERT = 8, 4, 64
"""Attention heads, feature levels, and the width of BERT's heads. The shapes of tensors don't show them; they are the
same in every official model."""


def converted_folder(path: Path) -> Path:
    """Convert an official file to a model folder of transformers in the cache; return the folder, without a tokenizer.

    Raise `UserError` if the file is not an official Grounding DINO.
    """

    def write(folder: Path) -> None:
        state = {name.removeprefix("module."): tensor for name, tensor in read_tensors("detector.model", path).items()}
        try:
            used = {name: tensor for name, tensor in state.items() if not _LEFT_OUT.match(name)}
            check_layers(used)
            config = build_config(used)
            check_numbers("detector.model", path, used)
            tensors = rename_tensors(used)
            check_shapes(config, used)
        except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            rule = f"its tensors look like {family_of(state)}, and should be an official Grounding DINO's ({reason})"
            remedy = "give groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth, or a model of transformers"
            raise UserError("detector.model", path, rule, remedy) from error
        config.save_pretrained(folder)
        GroundingDinoImageProcessorPil().save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return convert_once(path, "grounding-dino", write)


def check_layers(names: Collection[str]) -> None:
    """Raise `ValueError` with the name of a tensor that one layer lacks and another layer of its kind has."""
    layers: dict[str, set[str]] = {}
    tensors: dict[str, set[str]] = {}
    for name in names:
        layer, tensor = re.fullmatch(r"(.*\.\d+\.)?(.*)", name).groups("")  # type: ignore[union-attr]
        kind = re.sub(r"\d+", "#", layer)
        layers.setdefault(kind, set()).add(layer)
        tensors.setdefault(kind, set()).add(tensor)
    whole = {layer + tensor for kind in layers for layer in layers[kind] for tensor in tensors[kind]}
    if missing := whole - {*names}:
        raise ValueError(f"{min(missing)} is missing")


def rename_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by transformers' names, with joint projections split into query, key and value.

    Raise `ValueError` for an unknown name.
    """
    # Cloned, because safetensors refuses to save one tensor under two names.
    return {
        new: piece.contiguous().clone()
        for name, tensor in state.items()
        for new, piece in _renamed(name, tensor).items()
    }


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    parts = {name: tensor}
    if joint := re.search(r"(\.in_proj_|\.qkv\.)(weight|bias)$", name):
        pieces = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        parts = {f"{name[: joint.start()]}.{part}.{joint[2]}": piece for part, piece in pieces}
    return {_new_name(part): piece for part, piece in parts.items()}


def check_shapes(config: GroundingDinoConfig, state: dict[str, Tensor]) -> None:
    """Raise `ValueError` with the official name of a tensor whose shape differs from that in transformers' network.
    The backbone has other names there, so its shapes are checked when the model is loaded."""
    with quiet(), torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in GroundingDinoForObjectDetection(config).state_dict().items()}
    for name, tensor in state.items():
        for new, piece in _renamed(name, tensor).items():
            if (shape := expected.get(new, piece.shape)) != piece.shape:
                raise ValueError(f"{name} gives {new} the shape {tuple(piece.shape)} where {tuple(shape)} is expected")


def _new_name(name: str) -> str:
    if norm := re.fullmatch(r"backbone\.0\.norm(\d)\.(\w+)", name):
        return f"{_SWIN}hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}"
    for (old, new), parts in RENAMES.items():
        if module := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            rest = name[module.end() :]
            if part := next((part for part in parts if rest.startswith(part)), None):
                for number in module.groups():
                    new = new.replace("#", number, 1)
                return new + parts[part] + rest.removeprefix(part)
    raise ValueError(f"{name} is unknown")


def build_config(state: dict[str, Tensor]) -> GroundingDinoConfig:
    """Return the configuration, from the shapes of official tensors; raise `KeyError` if a tensor is missing."""
    depths = [_count(state, rf"backbone\.0\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
    biases = [state[f"backbone.0.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)]
    window = (round(biases[0].shape[0] ** 0.5) + 1) // 2
    embed = state["backbone.0.patch_embed.proj.weight"].shape[0]
    words, text_width = state["bert.embeddings.word_embeddings.weight"].shape
    points = state["transformer.encoder.layers.0.self_attn.attention_weights.bias"].shape[0] // (_HEADS * _LEVELS)
    return GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=384 if window == 12 else 224, embed_dim=embed, depths=depths, window_size=window,
            num_heads=[bias.shape[1] for bias in biases], out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=words, hidden_size=text_width, num_hidden_layers=_count(state, r"bert\.encoder\.layer\.(\d+)\."),
            num_attention_heads=text_width // _HEAD_WIDTH_OF_BERT,
            intermediate_size=state["bert.encoder.layer.0.intermediate.dense.bias"].shape[0],
            max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
        ),
        d_model=state["transformer.level_embed"].shape[1], num_feature_levels=_LEVELS,
        encoder_layers=_count(state, r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(state, r"transformer\.decoder\.layers\.(\d+)\."),
        encoder_ffn_dim=state["transformer.encoder.layers.0.linear1.bias"].shape[0],
        decoder_ffn_dim=state["transformer.decoder.layers.0.linear1.bias"].shape[0],
        encoder_attention_heads=_HEADS, decoder_attention_heads=_HEADS,
        encoder_n_points=points, decoder_n_points=points,
        num_queries=state["transformer.tgt_embed.weight"].shape[0],
    )  # fmt: skip


def _count(state: dict[str, Tensor], pattern: str) -> int:
    numbers = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    if not numbers:
        raise KeyError(pattern)
    return len(numbers)
