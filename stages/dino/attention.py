"""The attention modules of Grounding DINO in forms that need less memory.

transformers computes attention between image and text in both directions from one matrix of scores. It stores several
copies of this matrix (18,000 x 256 for each head at full size), and subtracts the maximum of the whole batch from it.
In bfloat16, the subtraction costs digits, and an image's results depend on the other images of its batch. Here, a fused
kernel computes each direction, without the copies and the subtraction.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedBiAttention(nn.Module):
    """Attention between image and text in both directions.

    It replaces transformers' `...BiMultiHeadAttention`, with the layers and the signature of the original.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads, self.scale = original.num_heads, original.scale
        self.vision_proj, self.text_proj = original.vision_proj, original.text_proj
        self.values_vision_proj, self.values_text_proj = original.values_vision_proj, original.values_text_proj
        self.out_vision_proj, self.out_text_proj = original.out_vision_proj, original.out_text_proj
        self.padded = True
        """Whether an image of the batch is padded. Without padding, no mask is passed, which allows faster kernels."""

    def forward(
        self, vision_features: Tensor, text_features: Tensor, vision_attention_mask: Tensor, text_attention_mask: Tensor
    ) -> tuple[tuple[Tensor, None], tuple[Tensor, None]]:
        """Return the updates of image `[B, P, d]` and text `[B, T, d]`, each with None in place of attention weights.

        The masks are bool, `[B, P]` and `[B, T]`, true for padding.
        """
        vision, text = self._split(self.vision_proj(vision_features)), self._split(self.text_proj(text_features))
        text_values = self._split(self.values_text_proj(text_features))
        vision_values = self._split(self.values_vision_proj(vision_features))
        pixels = ~vision_attention_mask[:, None, None] if self.padded else None
        to_vision = F.scaled_dot_product_attention(
            vision, text, text_values, ~text_attention_mask[:, None, None], scale=self.scale
        )
        to_text = F.scaled_dot_product_attention(text, vision, vision_values, pixels, scale=self.scale)
        image, words = (x.transpose(1, 2).flatten(2) for x in (to_vision, to_text))  # heads become channels again
        return (self.out_vision_proj(image), None), (self.out_text_proj(words), None)

    def _split(self, x: Tensor) -> Tensor:
        """Split channels into heads: `[B, n, d]` -> `[B, heads, n, d / heads]`."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)
