"""The projector: vision encoder's width -> LLM's width. LLaVA's two kinds, with LLaVA's names for their weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder

_PREFIX = "model.mm_projector."


def build_projector(kind: Literal["mlp", "linear"], vision_width: int, llm_width: int) -> nn.Module:
    """`mlp`: Linear, exact GELU, Linear (LLaVA's mlp2x_gelu). `linear`: one Linear."""
    first = nn.Linear(vision_width, llm_width)
    return first if kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(llm_width, llm_width))


def save_projector(projector: nn.Module, path: Path) -> None:
    """Write `mm_projector.bin` with LLaVA's keys (`model.mm_projector.0.weight`, ...), atomically."""
    state = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in projector.state_dict().items()}
    content = io.BytesIO()
    torch.save(state, content)
    with Folder(path.parent).commit(path.name) as partial:
        partial.write_bytes(content.getbuffer())  # so that a full disk is an OSError


def load_projector(path: Path) -> nn.Module:
    """The projector in a `mm_projector.bin`, ours or LLaVA's own.

    Raises:
        UserError: it is no projector of a kind known here.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = {name.rpartition("mm_projector.")[2]: tensor.float() for name, tensor in state.items()}
    except Exception as error:
        raise UserError("projector", path, f"it can't be read ({type(error).__name__})", "fetch it again") from error
    kinds: dict[frozenset[str], Literal["mlp", "linear"]] = {
        frozenset({"weight", "bias"}): "linear",
        frozenset({"0.weight", "0.bias", "2.weight", "2.bias"}): "mlp",
    }
    kind = kinds.get(frozenset(state))
    if kind is None:
        rule = f"its tensors ({', '.join(sorted(state)[:4])}) are neither a Linear's nor a 2-layer MLP's"
        raise UserError("projector", path, rule, "give a mm_projector.bin of one of these kinds")
    first = state["weight" if kind == "linear" else "0.weight"]
    projector = build_projector(kind, first.shape[1], first.shape[0])
    projector.load_state_dict(state)
    return projector
