"""transformers' LLaVA with a C-Abstractor for a projector, which the stock class can't express.

An exported model of this kind has a copy of this file and of abstractor.py in its folder, so that it loads where this
project is not installed (with `trust_remote_code=True`). Here, it is loaded by these classes, and the copies never run.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from .abstractor import CAbstractor


class AbstractorLlavaConfig(LlavaConfig):
    """LLaVA's, with the C-Abstractor's sizes."""

    # Not "llava": stock code would take the folder for its own kind, and make up a projector in silence.
    model_type = "llava_c_abstractor"
    abstractor: dict[str, Any] | None = None
    """What `CAbstractor` takes by name."""


class AbstractorLlava(LlavaForConditionalGeneration):
    """LLaVA, whose image has as many tokens as the C-Abstractor makes of it."""

    config_class = AbstractorLlavaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = CAbstractor(**(config.abstractor or {}))
