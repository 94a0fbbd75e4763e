"""SAM from an official checkpoint, built from the modules of the package `segment_anything` ("upstream").

Tensor names and results are upstream's. Attention is fused, and the decoder takes the boxes of many images at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from pad_pipeline.errors import UserError
from pad_pipeline.stages.compute import Compute
from pad_pipeline.stages.sam.attention import CrossAttention, RelativeAttention
from pad_pipeline.stages.sam.base import SegmentAnything
from pad_pipeline.weights import check_numbers, check_state_dict, family_of, read_tensors


class SamShape(BaseModel):
    """The sizes of SAM's network. Official models differ only in the fields without a default."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = Field(1024, gt=0, le=4096)
    """Edge of the encoder's square in pixels."""
    patch: int = Field(16, gt=0)
    """Edge of a token in pixels of the square. A mask of the decoder has 4 x 4 points for each token."""
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    global_attention: list[int]
    """Indices of the blocks with attention over the whole image. The others have attention in windows."""
    window: int = Field(14, gt=0)
    """Edge of a window in tokens."""
    decoder_width: int = Field(256, gt=0, multiple_of=16)
    """Channels of the prompt encoder and the mask decoder."""
    decoder_mlp: int = Field(2048, gt=0)

    @model_validator(mode="after")
    def _whole_tokens(self) -> SamShape:
        side, rest = divmod(self.image_size, self.patch)
        if rest:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        if side > 128:
            raise ValueError(f"{side} tokens along an edge are more than any SAM's (128)")
        return self


def read_shape(shapes: Mapping[str, tuple[int, ...]]) -> SamShape:
    """Return the sizes of the network, from the shapes of an official checkpoint's tensors by name.

    Raise `KeyError` if a tensor is missing, and `ValueError` if the shapes contradict each other.
    """
    width, _, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
    side = shapes["image_encoder.pos_embed"][1]
    blocks = [name for name in shapes if re.fullmatch(r"image_encoder\.blocks\.\d+\.attn\.rel_pos_h", name)]
    # A block has 2 * edge - 1 relative positions, for an edge of the whole image or of a window.
    edges = [(shapes[f"image_encoder.blocks.{block}.attn.rel_pos_h"][0] + 1) // 2 for block in range(len(blocks))]
    windows = {edge for edge in edges if edge != side}
    if len(windows) > 1:
        raise ValueError(f"its windows differ: {sorted(windows)}")
    return SamShape(
        image_size=side * patch,
        patch=patch,
        width=width,
        depth=len(blocks),
        heads=width // shapes["image_encoder.blocks.0.attn.rel_pos_h"][1],
        global_attention=[block for block, edge in enumerate(edges) if edge == side],
        window=windows.pop() if windows else side,
        decoder_width=shapes["mask_decoder.iou_token.weight"][1],
        decoder_mlp=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
    )


def build_sam(shape: SamShape) -> Sam:
    """Build the network as upstream's `build_sam` does, with any sizes and with fused attention."""
    side = shape.image_size // shape.patch
    encoder = ImageEncoderViT(
        img_size=shape.image_size, patch_size=shape.patch, embed_dim=shape.width, depth=shape.depth,
        num_heads=shape.heads, mlp_ratio=4, out_chans=shape.decoder_width, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=shape.window,
        global_attn_indexes=tuple(shape.global_attention),
    )  # fmt: skip
    for block in encoder.blocks:
        block.attn = RelativeAttention(shape.width, shape.heads, block.window_size or side)
    transformer = TwoWayTransformer(depth=2, embedding_dim=shape.decoder_width, num_heads=8, mlp_dim=shape.decoder_mlp)
    for layer in [*transformer.layers, transformer]:
        for name, module in list(layer.named_children()):
            if isinstance(module, Attention):
                setattr(layer, name, CrossAttention(module))
    prompts = PromptEncoder(shape.decoder_width, (side, side), (shape.image_size, shape.image_size), mask_in_chans=16)
    decoder = MaskDecoder(
        transformer_dim=shape.decoder_width, transformer=transformer, iou_head_hidden_dim=shape.decoder_width
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def load_sam(path: Path) -> tuple[Sam, SamShape]:
    """Load an official checkpoint; return the network, in eval mode and float32, and its sizes.

    Raise `UserError` if the tensors of the file are not exactly those of a SAM.
    """
    state = read_tensors("segmenter.weights", path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        shape = read_shape(shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        rule = f"its tensors look like {family_of(state)}, and should be a SAM's ({reason})"
        remedy = "give sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth"
        raise UserError("segmenter.weights", path, rule, remedy) from error
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_sam(shape).state_dict().items()}
    check_state_dict("segmenter.weights", path, expected, shapes)
    check_numbers("segmenter.weights", path, state)
    sam = build_sam(shape)
    sam.load_state_dict(state, assign=True)
    return sam.float().eval(), shape


def decode_boxes(sam: Sam, embeddings: Tensor, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Decode a mask for each box, as upstream's mask decoder does, with boxes of several images.

    Args:
        sam: the network.
        embeddings: from the image encoder, `[B, decoder_width, s, s]`.
        image: the index of each box's image in the batch, int64 `[N]`.
        boxes: xyxy in pixels of the encoder's square, `[N, 4]`.

    Returns:
        Mask logits, float32 `[N, 4 s, 4 s]`, and predicted IoU, float32 `[N]`.
    """
    decoder = sam.mask_decoder
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([tokens.expand(len(boxes), -1, -1), sparse], 1)
    source = embeddings[image] + dense
    positions = sam.prompt_encoder.get_dense_pe().expand(len(boxes), -1, -1, -1)
    tokens, pixels = decoder.transformer(source, positions, tokens)
    pixels = decoder.output_upscaling(pixels.transpose(1, 2).reshape(source.shape))
    # Token 0 predicts the IoU. Token 1 is the mask token for unambiguous prompts, such as boxes.
    weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
    with torch.autocast(pixels.device.type, enabled=False):
        logits = torch.einsum("nc,nchw->nhw", weights.float(), pixels.float())
    return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 0].float()


class OfficialSam(SegmentAnything):
    """SAM from an official checkpoint, on its device. The encoder is compiled for batches of `batch_size` images."""

    def __init__(self, path: Path, compute: Compute, batch_size: int = 1) -> None:
        sam, self.network_shape = load_sam(path)
        self.compute, self.edge = compute, self.network_shape.image_size
        prompts = sam.prompt_encoder  # it computes sine and cosine of positions, far off in bfloat16
        # Autocast keeps torch's norms in float32, but not these, which are made of elementary operations.
        norms = [part for part in sam.modules() if isinstance(part, LayerNorm2d)]
        exact = [prompts, prompts.pe_layer, sam.mask_decoder.iou_prediction_head, *norms]
        self.sam: Sam = compute.prepare_model(sam, in_float32=exact)
        self.sam.image_encoder = compute.compiled(sam.image_encoder, (batch_size, 3, self.edge, self.edge))

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image with its long edge resized to the square's, as upstream does, uint8 `[3, h, w]`."""
        height, width = self.resized(*image.size)
        pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Return one tensor, `[B, decoder_width, s, s]`."""
        batch = torch.stack([self.sam.preprocess(self.compute.send(pixels)) for pixels in images])
        with self.compute.autocast():
            return [self.sam.image_encoder(batch)]

    def decode(self, embeddings: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode all boxes in one call. The indices in `image` may have any order."""
        with self.compute.autocast():
            return decode_boxes(self.sam, embeddings[0], self.compute.send(image), self.compute.send(boxes))
