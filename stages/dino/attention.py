"""Grounding DINO's attentions in forms that need less memory.

Between image and text, both directions share one matrix of scores, normalized over the words for the image and over
the image for the words. transformers writes that matrix out several times (18,000 x 256 for each head at full size)
and subtracts the maximum of the whole batch from it, which changes nothing in exact numbers, costs digits in bfloat16,
and lets an image's numbers depend on its neighbors'. A fused kernel for each direction does neither.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class FusedBiAttention(nn.Module):
    """Takes the place, the parameters and the signature of transformers' `...BiMultiHeadAttention`."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads, self.scale = original.num_heads, original.scale
        self.vision_proj, self.text_proj = original.vision_proj, original.text_proj
        self.values_vision_proj, self.values_text_proj = original.values_vision_proj, original.values_text_proj
        self.out_vision_proj, self.out_text_proj = original.out_vision_proj, original.out_text_proj
        self.padded = True
        """Whether any image of the batch is padded; where none is, the fastest kernels need no mask."""

    def forward(
        self,
        vision_features: Tensor,
        text_features: Tensor,
        vision_attention_mask: Tensor,
        text_attention_mask: Tensor,
    ) -> tuple[tuple[Tensor, None], tuple[Tensor, None]]:
        """What each side learns from the other: for the image `[B, P, d]`, for the text `[B, T, d]`; the weights that
        transformers gives too are left out.

        Args:
            vision_features: `[B, P, d]`.
            text_features: `[B, T, d]`.
            vision_attention_mask: `[B, P]`, true where there is only padding.
            text_attention_mask: `[B, T]`, likewise.
        """
        vision, words = self._heads(self.vision_proj(vision_features)), self._heads(self.text_proj(text_features))
        of_words = self._heads(self.values_text_proj(text_features))
        of_vision = self._heads(self.values_vision_proj(vision_features))
        pixels = ~vision_attention_mask[:, None, None] if self.padded else None
        to_vision = F.scaled_dot_product_attention(
            vision, words, of_words, ~text_attention_mask[:, None, None], scale=self.scale
        )
        to_words = F.scaled_dot_product_attention(words, vision, of_vision, pixels, scale=self.scale)
        return (self.out_vision_proj(_joined(to_vision)), None), (self.out_text_proj(_joined(to_words)), None)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LevelwiseSampling(nn.Module):
    """Deformable attention's sum over sampled points (arXiv 2010.04159, equation 3), resolution by resolution.

    Takes the place and the signature of transformers' `MultiScaleDeformableAttention`, which keeps the samples of all
    resolutions, and again their products with the weights: gigabytes at full size. Always float32.
    """

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """`[B, queries, heads * channels]`.

        Args:
            value: `[B, places of all levels, heads, channels]`.
            value_spatial_shapes: not used.
            value_spatial_shapes_list: height and width of each level.
            level_start_index: not used.
            sampling_locations: `[B, queries, heads, levels, points, 2]`, x and y as parts of the level.
            attention_weights: `[B, queries, heads, levels, points]`.
            im2col_step: not used.
        """
        batch, _, heads, channels = value.shape
        maps = value.float().split([height * width for height, width in value_spatial_shapes_list], dim=1)
        grids = (2 * sampling_locations.float() - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
        weights = attention_weights.float().permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)
        total = value.new_zeros((), dtype=value.float().dtype)
        for level, (height, width) in enumerate(value_spatial_shapes_list):
            level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
            samples = F.grid_sample(level_map, grids[level], padding_mode="zeros", align_corners=False)
            total = total + (samples * weights[level]).sum(-1)
        return total.view(batch, heads * channels, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
