"""Define LLaVA for towers and projectors that transformers' own LLaVA can't have: registers, and pixel shuffle.

An exported model of this kind has a copy of this file and of those that it imports in its folder, so that it loads if
this project is not installed (with `trust_remote_code=True`). This project never runs the copies.
"""

from __future__ import annotations

from typing import Any

from .llava_abstractor import AbstractorLlava, AbstractorLlavaConfig
from .pixel_shuffle import PixelShuffle


class PatchLlavaConfig(AbstractorLlavaConfig):
    """LLaVA's config, the sizes of a projector, and the number of tokens before the tower's patches."""

    model_type = "llava_patches"
    pixel_shuffle: dict[str, Any] | None = None
    """Keyword arguments of `PixelShuffle`; None for another projector."""
    prefix_tokens: int = 0
    """Number of special tokens, CLS and registers, that are dropped from the tower's output."""


class PatchLlava(AbstractorLlava):
    """LLaVA whose tower gives patches alone, and whose projector can be a C-Abstractor or a pixel shuffle."""

    config_class = PatchLlavaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.pixel_shuffle is not None:
            self.model.multi_modal_projector = PixelShuffle(**config.pixel_shuffle)
        self.model.vision_tower.register_forward_hook(self._drop_prefix)

    def _drop_prefix(self, tower: Any, inputs: Any, output: Any) -> Any:
        first = self.config.prefix_tokens
        # transformers keeps only the layers that LLaVA asked for, and has None for the others.
        output.hidden_states = tuple(states if states is None else states[:, first:] for states in output.hidden_states)
        return output
