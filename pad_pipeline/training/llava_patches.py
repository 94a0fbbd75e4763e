"""Define LLaVA for towers and projectors that transformers' own LLaVA can't have: registers, pixel shuffle, places.

An exported model of this kind has a copy of this file and of those that it imports in its folder, so that it loads if
this project is not installed (with `trust_remote_code=True`). This project never runs the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .llava_abstractor import AbstractorLlava, AbstractorLlavaConfig
from .pixel_shuffle import PixelShuffle


class PatchLlavaConfig(AbstractorLlavaConfig):
    """LLaVA's config, the sizes of a projector, and the number of tokens before the tower's patches."""

    model_type = "llava_patches"
    pixel_shuffle: dict[str, Any] | None = None
    """Keyword arguments of `PixelShuffle`; None for another projector."""
    place_tokens: int = 0
    """Number of vision tokens, if each gets a vector of its place behind the projector; else 0."""
    prefix_tokens: int = 0
    """Number of special tokens, CLS and registers, that are dropped from the tower's output."""


class PatchLlava(AbstractorLlava):
    """LLaVA whose tower gives patches alone, and whose projector can be a C-Abstractor or a pixel shuffle, and can have
    a place for each token."""

    config_class = PatchLlavaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.pixel_shuffle is not None:
            self.model.multi_modal_projector = PixelShuffle(**config.pixel_shuffle)
        self.model.vision_tower.register_forward_hook(self._drop_prefix)
        if config.place_tokens:
            place = nn.Parameter(torch.zeros(config.place_tokens, config.text_config.hidden_size))
            self.model.multi_modal_projector.register_parameter("place", place)
            self.place_hook = self.model.multi_modal_projector.register_forward_hook(self._add_place)

    def _drop_prefix(self, tower: Any, inputs: Any, output: Any) -> Any:
        first = self.config.prefix_tokens
        # transformers keeps only the layers that LLaVA asked for, and has None for the others.
        output.hidden_states = tuple(states if states is None else states[:, first:] for states in output.hidden_states)
        return output

    def _add_place(self, projector: Any, inputs: Any, output: Any) -> Any:
        return output + projector.place
