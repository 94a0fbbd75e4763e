"""Implement a projector with pixel shuffle, which joins 2 x 2 neighboring patches into one token."""

from __future__ import annotations

from torch import Tensor, nn

FACTOR = 2
"""Number of patches along each edge of the square that becomes one token."""


class PixelShuffle(nn.Sequential):
    """A projector that concatenates the channels of 2 x 2 patches, then normalizes them and runs an MLP.

    The order of the channels is upper left, upper right, lower left, lower right. Order and layers (LayerNorm, Linear,
    GELU, Linear) are those of InternVL (arXiv 2404.16821, section 3.1; `mlp1` in its code), and the weights have the
    names of `mlp1`. Idefics3 (arXiv 2408.12637) joins patches in the same order, and has one Linear behind it.

    Args:
        vision_width: number of channels of the vision tower's tokens.
        llm_width: number of channels of the LLM's tokens.
    """

    def __init__(self, vision_width: int, llm_width: int) -> None:
        joined = vision_width * FACTOR**2
        first, second = nn.Linear(joined, llm_width), nn.Linear(llm_width, llm_width)
        super().__init__(nn.LayerNorm(joined), first, nn.GELU(), second)
        self.sizes = {"vision_width": vision_width, "llm_width": llm_width}

    def forward(self, input: Tensor) -> Tensor:  # nn.Sequential's name for it
        """Project `[B, grid * grid, vision_width]` to `[B, (grid / 2) ** 2, llm_width]`, both row by row from the top
        left. `grid` is even."""
        batch, patches, width = input.shape
        edge = round(patches**0.5) // FACTOR
        x = input.view(batch, edge, FACTOR, edge, FACTOR, width).transpose(2, 3)
        x = x.reshape(batch, edge * edge, FACTOR**2 * width)
        for layer in self:
            x = layer(x)
        return x
