"""The shape of a SAM network, and how it is read off a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SamShape(BaseModel):
    """The shape of the network. Official models differ only in the fields that have no default."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = Field(1024, gt=0, le=4096)
    """Edge of the square that goes into the encoder, in pixels."""
    patch: int = Field(16, gt=0)
    """Edge of one token, in pixels of that square. A mask of the decoder has 4 x 4 points for each token."""
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    global_attention: list[int]
    """Indices of the blocks that attend over the whole image; the others attend inside windows."""
    window: int = Field(14, gt=0)
    """Edge of a window, in tokens."""
    decoder_width: int = Field(256, gt=0, multiple_of=16)
    """Channels of the prompt encoder and the mask decoder."""
    decoder_mlp: int = Field(2048, gt=0)

    @model_validator(mode="after")
    def _whole_tokens(self) -> SamShape:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        if self.image_size // self.patch > 128:
            raise ValueError(f"{self.image_size // self.patch} tokens along an edge are more than any SAM's (128)")
        return self


VIT_B = SamShape(width=768, depth=12, heads=12, global_attention=[2, 5, 8, 11])
VIT_L = SamShape(width=1024, depth=24, heads=16, global_attention=[5, 11, 17, 23])
VIT_H = SamShape(width=1280, depth=32, heads=16, global_attention=[7, 15, 23, 31])


def read_shape(shapes: Mapping[str, tuple[int, ...]]) -> SamShape:
    """Return the shape of the network whose tensors have these shapes.

    Args:
        shapes: the shape of each tensor of an official checkpoint, by name.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the shapes contradict each other.
    """
    width, _, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
    side = shapes["image_encoder.pos_embed"][1]
    blocks = [name for name in shapes if re.fullmatch(r"image_encoder\.blocks\.\d+\.attn\.rel_pos_h", name)]
    # There is a relative position for each distance along an edge: 2 * edge - 1, of the whole image or of a window.
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
