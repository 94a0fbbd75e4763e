"""Convert official `groundingdino_*.pth` files into model folders of transformers."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoImageProcessorPil, SwinConfig

from pad_pipeline.errors import UserError
from pad_pipeline.weights import check_numbers, converted, family_of, read_tensors

_SWIN, _SWIN_HF = r"backbone\.0\.", "model.backbone.conv_encoder.model."
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_BLOCK_HF = r"encoder.layers.\1.blocks.\2."
_ENCODER, _DECODER = r"transformer\.encoder\.", r"transformer\.decoder\."
_TEXT, _FUSION = r"model.encoder.layers.\1.text_enhancer_layer.", r"model.encoder.layers.\1.fusion_layer."
_DEFORMABLE, _DECODER_LAYER = r"model.encoder.layers.\1.deformable_layer.", r"model.decoder.layers.\1."
RENAMES = [
    (_SWIN + r"patch_embed\.proj", _SWIN_HF + "embeddings.patch_embeddings.projection"),
    (_SWIN + r"patch_embed\.norm", _SWIN_HF + "embeddings.norm"),
    (_SWIN + _BLOCK + r"norm1", _SWIN_HF + _BLOCK_HF + "layernorm_before"),
    (_SWIN + _BLOCK + r"norm2", _SWIN_HF + _BLOCK_HF + "layernorm_after"),
    (_SWIN + _BLOCK + r"attn\.proj", _SWIN_HF + _BLOCK_HF + "attention.output.dense"),
    (_SWIN + _BLOCK + r"attn\.", _SWIN_HF + _BLOCK_HF + "attention.self."),
    (_SWIN + _BLOCK + r"mlp\.fc1", _SWIN_HF + _BLOCK_HF + "intermediate.dense"),
    (_SWIN + _BLOCK + r"mlp\.fc2", _SWIN_HF + _BLOCK_HF + "output.dense"),
    (_SWIN + r"layers\.(\d+)\.downsample\.", _SWIN_HF + r"encoder.layers.\1.downsample."),
    (r"input_proj\.", "model.input_proj_vision."),
    (r"bert\.", "model.text_backbone."),
    (r"feat_map\.", "model.text_projection."),
    (r"transformer\.level_embed", "model.level_embed"),
    (r"transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"transformer\.enc_output", "model.enc_output"),
    (r"transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (_ENCODER + r"text_layers\.(\d+)\.self_attn\.", _TEXT + "self_attn."),
    (_ENCODER + r"text_layers\.(\d+)\.linear", _TEXT + "fc"),
    (_ENCODER + r"text_layers\.(\d+)\.norm1", _TEXT + "layer_norm_before"),
    (_ENCODER + r"text_layers\.(\d+)\.norm2", _TEXT + "layer_norm_after"),
    (_ENCODER + r"fusion_layers\.(\d+)\.gamma_v", _FUSION + "vision_param"),
    (_ENCODER + r"fusion_layers\.(\d+)\.gamma_l", _FUSION + "text_param"),
    (_ENCODER + r"fusion_layers\.(\d+)\.layer_norm_v", _FUSION + "layer_norm_vision"),
    (_ENCODER + r"fusion_layers\.(\d+)\.layer_norm_l", _FUSION + "layer_norm_text"),
    (_ENCODER + r"fusion_layers\.(\d+)\.attn\.(values_|out_|)v_proj", _FUSION + r"attn.\2vision_proj"),
    (_ENCODER + r"fusion_layers\.(\d+)\.attn\.(values_|out_|)l_proj", _FUSION + r"attn.\2text_proj"),
    (_ENCODER + r"layers\.(\d+)\.self_attn\.", _DEFORMABLE + "self_attn."),
    (_ENCODER + r"layers\.(\d+)\.linear", _DEFORMABLE + "fc"),
    (_ENCODER + r"layers\.(\d+)\.norm1", _DEFORMABLE + "self_attn_layer_norm"),
    (_ENCODER + r"layers\.(\d+)\.norm2", _DEFORMABLE + "final_layer_norm"),
    (_DECODER + r"layers\.(\d+)\.cross_attn\.", _DECODER_LAYER + "encoder_attn."),
    (_DECODER + r"layers\.(\d+)\.norm1", _DECODER_LAYER + "encoder_attn_layer_norm"),
    (_DECODER + r"layers\.(\d+)\.ca_text\.", _DECODER_LAYER + "encoder_attn_text."),
    (_DECODER + r"layers\.(\d+)\.catext_norm", _DECODER_LAYER + "encoder_attn_text_layer_norm"),
    (_DECODER + r"layers\.(\d+)\.self_attn\.", _DECODER_LAYER + "self_attn."),
    (_DECODER + r"layers\.(\d+)\.norm2", _DECODER_LAYER + "self_attn_layer_norm"),
    (_DECODER + r"layers\.(\d+)\.linear", _DECODER_LAYER + "fc"),
    (_DECODER + r"layers\.(\d+)\.norm3", _DECODER_LAYER + "final_layer_norm"),
    (_DECODER + r"norm\.", "model.decoder.layer_norm."),
    (_DECODER + r"ref_point_head\.", "model.decoder.reference_points_head."),
]  # fmt: skip
"""Regular expressions for the start of an official name, and what transformers calls it; the first match counts."""
_LEFT_OUT = re.compile(
    r"bert\.pooler\.|bert\.embeddings\.position_ids|.*\.relative_position_index|label_enc\."
    r"|transformer\.decoder\.bbox_embed\.|bbox_embed\.[1-9]"
)
"""Tensors that are not used, can be computed, or are a second name of another."""
_HEADS, _LEVELS, _HEAD_WIDTH_OF_BERT = 8, 4, 64
"""Attention heads, feature levels, and the width of a head of BERT: the same in every official model, and not to be
read off the shapes of its tensors."""


def converted_folder(path: Path) -> Path:
    """Convert an official file into a model folder of transformers in the cache, and return the folder.

    The folder has no tokenizer, because the file has none.

    Raises:
        UserError: the file is no official Grounding DINO.
    """

    def write(folder: Path) -> None:
        state = {name.removeprefix("module."): tensor for name, tensor in read_tensors("detector.model", path).items()}
        try:
            used = {name: tensor for name, tensor in state.items() if not _LEFT_OUT.match(name)}
            config = build_config(used)
            check_numbers("detector.model", path, used)
            tensors = rename(used)
        except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            rule = f"its tensors look like {family_of(state)}, and should be an official Grounding DINO's ({error})"
            remedy = "give groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth, or a model of transformers"
            raise UserError("detector.model", path, rule, remedy) from error
        config.save_pretrained(folder)
        GroundingDinoImageProcessorPil().save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return converted(path, "grounding-dino", write)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under transformers' names, with joint projections cut into query, key and value.

    Args:
        state: the tensors that are used, under their official names.

    Raises:
        ValueError: a name is unknown.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        joint = re.search(r"(\.in_proj_|\.qkv\.)(weight|bias)$", name)
        if joint is None:
            # Cloned, because two names may share one tensor, and safetensors refuses to save those.
            renamed[_new_name(name)] = tensor.contiguous().clone()
            continue
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            renamed[_new_name(f"{name[: joint.start()]}.{part}.{joint.group(2)}")] = piece.contiguous().clone()
    return renamed


def _new_name(name: str) -> str:
    if name.startswith("bbox_embed.0."):
        return name
    if norm := re.fullmatch(r"backbone\.0\.norm(\d)\.(\w+)", name):
        return f"{_SWIN_HF}hidden_states_norms.stage{int(norm.group(1)) + 1}.{norm.group(2)}"
    for old, new in RENAMES:
        if match := re.match(old, name):
            return match.expand(new) + name[match.end() :]
    raise ValueError(f"{name} is unknown")


def build_config(state: dict[str, Tensor]) -> GroundingDinoConfig:
    """Read the network's configuration off the shapes of its tensors.

    Args:
        state: the tensors that are used, under their official names.

    Raises:
        KeyError: a tensor is missing.
    """
    depths = [_count(state, rf"backbone\.0\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
    biases = [
        state[f"backbone.0.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))
    ]
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
    """Return how many layers there are under a numbered name.

    Raises:
        KeyError: there are none.
    """
    numbers = {int(match.group(1)) for name in state if (match := re.match(pattern, name))}
    if not numbers:
        raise KeyError(pattern)
    return len(numbers)
