"""LLaVA of transformers with a C-Abstractor as its projector, which the stock class can't express.

An exported model of this kind has a copy of this file and of abstractor.py in its folder, so that it loads where this
project is not installed (with `trust_remote_code=True`). This project loads it with the classes here, and the copies
never run.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from .abstractor import CAbstractor


class AbstractorLlavaConfig(LlavaConfig):
    """LLaVA's config, with the C-Abstractor's sizes."""

    # Not "llava": stock code would take the folder for stock LLaVA, and invent a projector without a warning.
    model_type = "llava_c_abstractor"
    abstractor: dict[str, Any] | None = None
    """Keyword arguments of `CAbstractor`."""


class AbstractorLlava(LlavaForConditionalGeneration):
    """LLaVA in which an image has as many tokens as the C-Abstractor makes of it."""

    config_class = AbstractorLlavaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = CAbstractor(**(config.abstractor or {}))
