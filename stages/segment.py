"""Boxes -> masks: Segment Anything says which pixels a box means."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field, model_validator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.weights import check_state_dict, fetch_file, read_tensors
from stages.base import Stage, chunks
from stages.decode import picture
from stages.device import use_device


class SamShape(BaseModel):
    """The shape of the network; official models differ only in the fields that have no default."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = Field(1024, gt=0, le=4096)
    """Edge of the square that goes into the encoder, in pixels."""
    patch: int = Field(16, gt=0)
    """Edge of one token, in pixels of that square; the decoder draws masks at 4 x 4 points a token."""
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    global_attention: list[int]
    """Blocks that attend over the whole picture; the others attend in windows."""
    window: int = Field(14, gt=0)
    """Edge of such a window, in tokens."""
    decoder_width: int = Field(256, gt=0, multiple_of=16)
    """Channels of the prompt encoder and the mask decoder."""
    decoder_mlp: int = Field(2048, gt=0)

    @model_validator(mode="after")
    def _whole_tokens(self) -> SamShape:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        return self


VIT_B = SamShape(width=768, depth=12, heads=12, global_attention=[2, 5, 8, 11])
VIT_L = SamShape(width=1024, depth=24, heads=16, global_attention=[5, 11, 17, 23])
VIT_H = SamShape(width=1280, depth=32, heads=16, global_attention=[7, 15, 23, 31])


class SegmenterSettings(BaseModel):
    """Which Segment Anything."""

    model_config = ConfigDict(extra="forbid")

    weights: str
    """Local path or URL of an official `.pth`, or safetensors with the same names."""
    sha256: str = ""
    """Of the weights; empty to accept any."""
    shape: SamShape = VIT_H
    batch_size: int = Field(4, gt=0)
    """Pictures in one pass of the image encoder."""
    pixels_upscaled: int = Field(64_000_000, gt=0)
    """Pixels of masks brought to the original size at a time, 4 bytes each; one mask at least."""


class Segmenter(Stage):
    """Batches pictures through the image encoder, and all boxes of a picture through one decoder call."""

    name = "segment"

    def __init__(self, settings: SegmenterSettings, decoding: DecodeSettings, threads: int) -> None:
        self.settings, self.decoding = settings, decoding
        self.device = use_device(threads)
        path = fetch_file("segmenter.weights", settings.weights, settings.sha256)
        self.sam = build_sam(settings.shape)
        state = read_tensors("segmenter.weights", path)
        check_state_dict("segmenter.weights", path, _shapes(self.sam.state_dict()), _shapes(state))
        self.sam.load_state_dict(state, assign=True)
        self.sam.to(self.device).float().eval()
        self.resize = ResizeLongestSide(settings.shape.image_size)

    def batches(self, rows: list[ImageRecord]) -> list[list[ImageRecord]]:
        """`batch_size` pictures at a time; SAM pads all to one square."""
        return chunks(rows, self.settings.batch_size)

    def prepare(self, row: ImageRecord) -> Tensor:
        """The resized picture, uint8 `[3, h, w]` with the long edge at the encoder's size (upstream's resize)."""
        pixels = self.resize.apply_image(np.asarray(picture(row, self.decoding)))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    @torch.inference_mode()
    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> None:
        """Set the mask and the predicted IoU of each row's regions."""
        images = torch.stack([self.sam.preprocess(pixels.to(self.device)) for pixels in inputs])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            embeddings = self.sam.image_encoder(images)
        found = [
            self.segment(row, embedding.float(), (pixels.shape[1], pixels.shape[2]))
            for row, embedding, pixels in zip(rows, embeddings, inputs, strict=True)
        ]
        for row, masks in zip(rows, found, strict=True):
            for region, (rle, quality) in zip(row.regions, masks, strict=True):
                region.rle, region.predicted_iou = rle, quality

    def segment(
        self, row: ImageRecord, embedding: Tensor, resized: tuple[int, int]
    ) -> list[tuple[dict[str, Any], float]]:
        """RLE and predicted IoU for each region of one picture.

        Args:
            row: the picture with its regions' boxes.
            embedding: `[decoder_width, s, s]`, of the image encoder.
            resized: height and width of the picture inside the encoder's square.
        """
        size = (row.height, row.width)
        boxes = self.resize.apply_boxes(np.array([region.box for region in row.regions]), size)
        sparse, dense = self.sam.prompt_encoder(
            points=None, boxes=torch.as_tensor(boxes, dtype=torch.float32, device=self.device), masks=None
        )
        logits, quality = self.sam.mask_decoder(
            image_embeddings=embedding.unsqueeze(0),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        rles = []
        for part in logits.split(max(1, self.settings.pixels_upscaled // (row.height * row.width))):
            masks = self.sam.postprocess_masks(part, resized, size) > self.sam.mask_threshold
            rles += [encode_mask(mask) for mask in masks[:, 0].cpu().numpy()]
        return list(zip(rles, quality[:, 0].tolist(), strict=True))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """`[H, W]` bool -> compressed COCO RLE with its counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(edge) for edge in rle["size"]], "counts": rle["counts"].decode("ascii")}


def build_sam(shape: SamShape) -> Sam:
    """Upstream's modules, put together as upstream's `build_sam` does, for any size of encoder."""
    side = shape.image_size // shape.patch
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=shape.image_size,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            mlp_ratio=4,
            out_chans=shape.decoder_width,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window,
            global_attn_indexes=tuple(shape.global_attention),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=shape.decoder_width,
            image_embedding_size=(side, side),
            input_image_size=(shape.image_size, shape.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=shape.decoder_width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=shape.decoder_width, num_heads=8, mlp_dim=shape.decoder_mlp
            ),
            iou_head_hidden_dim=shape.decoder_width,
        ),
    )


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
