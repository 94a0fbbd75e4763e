"""Small models of transformers with random weights, in folders like those of their authors on the hub.

Each writer makes a model of a few layers; its arguments make one of the official number of layers.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3Processor,
    Sam3VideoConfig,
    Sam3VideoModel,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQProcessor,
    SamHQVisionConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from examples.miniature.detector import build_tokenizer
from pad_pipeline.pretrained import quiet

ONE_EACH = [1, 1, 1, 1]


def write_dino(
    folder: Path, tags: Sequence[str], kind: str = "grounding-dino", depths: list[int] = ONE_EACH, layers: int = 2,
    texts: int = 2, **more: Any,
) -> Path:  # fmt: skip
    """Write a Grounding DINO or, as `mm-grounding-dino`, an MM Grounding DINO or LLMDet, with a tokenizer that knows
    the words of the tags. `more` goes to its config."""
    tokenizer = build_tokenizer(tags)
    config, model = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }[kind]
    levels = more.get("num_feature_levels", 4)
    made = config(
        backbone_config=SwinConfig(
            image_size=96, embed_dim=16, depths=depths, num_heads=[1, 2, 4, 8], window_size=4,
            out_features=[f"stage{number}" for number in range(6 - levels, 5)],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=texts, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=512,
        ),
        d_model=32, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=20, max_text_len=256, disable_custom_kernels=True, **more,
    )  # fmt: skip
    model(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192}).save_pretrained(folder)
    return folder


def write_clip_tokenizer(folder: Path, length: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Write a tokenizer of CLIP that knows letters and the tokens `more`, in its old form: vocab.json and merges.txt.

    Return the entries of a text model's config that follow from it. `length` is the most tokens of a text.
    """
    letters = ["!", *string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *more]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {
        "vocab_size": len(vocabulary), "max_position_embeddings": length, "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1, "pad_token_id": 0,
    }  # fmt: skip


TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def write_owl(folder: Path, kind: str, texts: int = 2, layers: int = 2) -> Path:
    """Write an OWLv2 or OWL-ViT whose scores and boxes differ from text to text and place to place."""
    text = TEXT | {"num_hidden_layers": texts} | write_clip_tokenizer(folder, 24)
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2,
        "image_size": 96, "patch_size": 16,
    }  # fmt: skip
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any
        processor: Any
        if kind == "owlv2":
            config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
            model, processor = Owlv2ForObjectDetection(config), Owlv2ImageProcessorPil(size={"height": 96, "width": 96})
        else:
            config = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32)
            model = OwlViTForObjectDetection(config)
            processor = OwlViTImageProcessorPil(size={"height": 96, "width": 96})
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=1.0 if "vision_model.embeddings.p" in name else 0.2)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


OMDET_EDGE, OMDET_QUERIES = 96, 20


def write_omdet(folder: Path) -> Path:
    """Write an OmDet-Turbo whose scores and boxes differ from text to text and place to place."""
    text = TEXT | {"model_type": "clip_text_model", "num_hidden_layers": 2, "projection_dim": 32}
    text |= write_clip_tokenizer(folder, 77, (",</w>", ".</w>"))
    swin = {
        "model_type": "swin", "image_size": OMDET_EDGE, "embed_dim": 16, "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8], "window_size": 3, "out_indices": [2, 3, 4],
    }  # fmt: skip
    config = OmDetTurboConfig(
        text_config=text, backbone_config=swin, image_size=OMDET_EDGE, num_queries=OMDET_QUERIES, class_embed_dim=32,
        text_projection_in_dim=32, text_projection_out_dim=32, task_encoder_hidden_dim=64, encoder_hidden_dim=16,
        decoder_hidden_dim=16, encoder_in_channels=[32, 64, 128], vision_features_channels=[16, 16, 16],
        encoder_attention_heads=2, decoder_num_heads=2, encoder_dim_feedforward=32, decoder_dim_feedforward=32,
        decoder_num_layers=2, disable_custom_kernels=True, apply_layernorm_after_vision_backbone=False,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = OmDetTurboForObjectDetection(config)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        size = {"height": OMDET_EDGE, "width": OMDET_EDGE}
        DetrImageProcessorPil(size=size, do_pad=False).save_pretrained(folder)
    return folder


SAM_VISION: dict[str, Any] = {
    "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128,
    "window_size": 5, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 64, "initializer_range": 0.02,
}  # fmt: skip
SAM_DECODER: dict[str, Any] = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
SAM_PROMPT: dict[str, Any] = {"hidden_size": 32, "image_size": 128}
MEMORY = {f"memory_{part}": 32 for part in ("attention_hidden_size", "attention_feed_forward_hidden_size",
    "encoder_hidden_size", "fuser_embed_dim", "fuser_intermediate_dim")}  # fmt: skip


def small_sam(kind: str, **vision: Any) -> tuple[Any, Any]:
    """Return a SAM, SAM-HQ, SAM 2.1 or SAM 2.1 for videos, and its processor. `vision` goes to the encoder's config."""
    if kind.startswith("sam2"):
        hiera = {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]} | vision
        backbone = Sam2HieraDetConfig(
            hidden_size=16, image_size=[128, 128], embed_dim_per_stage=[16, 32, 64, 128],
            num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 4, 2],
            window_positional_embedding_background_size=[4, 4], **hiera,
        )  # fmt: skip
        encoder = Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=32,
        )  # fmt: skip
        prompt, decoder = Sam2PromptEncoderConfig(**SAM_PROMPT), Sam2MaskDecoderConfig(**SAM_DECODER)
        parts = {"vision_config": encoder, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
        size = {"height": 128, "width": 128}
        processor = Sam2Processor(Sam2ImageProcessor(size=size, mask_size={"height": 32, "width": 32}))
        if kind == "sam2":
            return Sam2Model(Sam2Config(**parts)), processor
        parts |= {name: part.to_dict() for name, part in parts.items() if part is not encoder}
        more = {"enable_temporal_pos_encoding_for_object_pointers": True, "enable_occlusion_spatial_embedding": True}
        video = Sam2VideoConfig(
            **parts, **MEMORY, **more, image_size=128, memory_encoder_output_channels=16, mask_downsampler_embed_dim=32
        )
        return Sam2VideoModel(video), processor
    image_processor = SamImageProcessorPil(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}, mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    )  # fmt: skip
    if kind == "sam_hq":
        config = SamHQConfig(
            vision_config=SamHQVisionConfig(**SAM_VISION | vision),
            prompt_encoder_config=SamPromptEncoderConfig(**SAM_PROMPT).to_dict(),
            mask_decoder_config=SamHQMaskDecoderConfig(**SAM_DECODER, vit_dim=32),
        )  # fmt: skip
        return SamHQModel(config), SamHQProcessor(image_processor)
    config = SamConfig(
        vision_config=SamVisionConfig(**SAM_VISION | vision),
        prompt_encoder_config=SamPromptEncoderConfig(**SAM_PROMPT),
        mask_decoder_config=SamMaskDecoderConfig(**SAM_DECODER),
    )  # fmt: skip
    return SamModel(config), SamProcessor(image_processor)


def write_sam(folder: Path, kind: str, **vision: Any) -> Path:
    """Write a model of `small_sam`, and its image processor."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = small_sam(kind, **vision)
        for name, parameter in model.named_parameters():
            if "token" in name or "pos_embed" in name or "rel_pos" in name:
                nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    return folder


SAM3_EDGE = 112


def write_sam3(folder: Path, kind: str = "sam3") -> Path:
    """Write a SAM 3 whose scores, boxes and masks differ from tag to tag and from place to place."""
    text = TEXT | {"model_type": "clip_text_model", "num_hidden_layers": 2, "projection_dim": 16}
    text |= write_clip_tokenizer(folder, 32)
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SAM3_EDGE, "patch_size": 14, "window_size": 4,
        "global_attn_indexes": [1], "pretrain_image_size": 56, "layer_scale_init_value": None,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }  # fmt: skip
    part = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    parts: dict[str, Any] = {
        "vision_config": vision, "text_config": text,
        "geometry_encoder_config": {**part, "num_layers": 1},
        "detr_encoder_config": part, "detr_decoder_config": {**part, "num_queries": 12},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }  # fmt: skip
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any
        if kind == "sam3_lite_text":
            lite = {name: value for name, value in text.items() if name != "model_type"}
            parts["text_config"] = lite | {"repmixer_kernel_size": 3}
            model = Sam3LiteTextModel(Sam3LiteTextConfig(**parts))
        elif kind == "sam3_video":
            tracker = {
                "model_type": "sam3_tracker_video", "vision_config": vision, "image_size": SAM3_EDGE,
                "memory_attention_num_layers": 1, "memory_encoder_hidden_size": 32,
            }  # fmt: skip
            whole = Sam3VideoConfig(detector_config={"model_type": "sam3", **parts}, tracker_config=tracker)
            model = Sam3VideoModel(whole)
        else:
            model = Sam3Model(Sam3Config(**parts))
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=1.0 if "patch_embeddings" in name else 0.2)
        model.save_pretrained(folder)
        size = {"height": SAM3_EDGE, "width": SAM3_EDGE}
        Sam3Processor(Sam3ImageProcessor(size=size), CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder
