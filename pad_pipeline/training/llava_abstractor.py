"""Define LLaVA with a C-Abstractor as a model of transformers, whose own LLaVA can't have such a projector.

An exported model of this kind has a copy of this file and of abstractor.py in its folder, so that it loads if this
project is not installed (with `trust_remote_code=True`). This project never runs the copies.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from .abstractor import CAbstractor


class AbstractorLlavaConfig(LlavaConfig):
    """LLaVA's config, and the C-Abstractor's sizes."""

    # With "llava", transformers would load the folder as its own LLaVA, with a random projector and without a warning.
    model_type = "llava_c_abstractor"
    abstractor: dict[str, Any] | None = None
    """Keyword arguments of `CAbstractor`."""


class AbstractorLlava(LlavaForConditionalGeneration):
    """LLaVA with a C-Abstractor as its projector."""

    config_class = AbstractorLlavaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.abstractor is not None:
            self.model.multi_modal_projector = CAbstractor(**config.abstractor)
