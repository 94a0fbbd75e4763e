"""Build, save and load a projector, which maps the vision tower's tokens to the LLM's width.

There are LLaVA's two kinds and Honeybee's C-Abstractor. Their weights have the names that LLaVA and Honeybee use.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder
from pad_pipeline.training.abstractor import HONEYBEE_TOKENS, CAbstractor, pool_coverage
from pad_pipeline.training.settings import ProjectorKind

_PREFIX = "model.mm_projector."
"""LLaVA's prefix of the names of a projector's weights."""


def build_projector(
    kind: ProjectorKind, vision_width: int, llm_width: int, grid: int = 0, tokens: int = HONEYBEE_TOKENS
) -> nn.Module:
    """Build a new projector of patch tokens `[B, grid * grid, vision_width]`, of a kind in `TrainSettings.projector`.

    Only a C-Abstractor needs `grid`, and makes `tokens` tokens; the other kinds keep one token for each patch.

    Raises:
        UserError: a C-Abstractor can't have that many tokens.
    """
    if kind == "c-abstractor":
        return CAbstractor(vision_width, llm_width, grid, tokens)
    first = nn.Linear(vision_width, llm_width)
    return first if kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(llm_width, llm_width))


def token_count(projector: nn.Module, grid: int) -> int:
    """Return the number of tokens that a projector makes of `grid * grid` patches."""
    return projector.tokens if isinstance(projector, CAbstractor) else grid**2


def pool(projector: nn.Module, coverage: Tensor, grid: int) -> Tensor:
    """Pool coverage `[R, grid * grid]` of patches to coverage `[R, M]` of the projector's tokens."""
    tokens = token_count(projector, grid)
    return coverage if tokens == grid**2 else pool_coverage(coverage, grid, math.isqrt(tokens))


def save_projector(projector: nn.Module, path: Path) -> None:
    """Write `mm_projector.bin` with LLaVA's keys (`model.mm_projector.0.weight`, ...), atomically.

    A C-Abstractor keeps Honeybee's names after LLaVA's prefix. Its file has one more tensor, `tokens` (int64), because
    no weight's shape says how many tokens come out.
    """
    weights = projector.state_dict()
    if isinstance(projector, CAbstractor):
        weights["tokens"] = torch.tensor(projector.tokens)
    state = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = io.BytesIO()
    torch.save(state, content)
    with Folder(path.parent).commit(path.name) as partial:
        partial.write_bytes(content.getbuffer())  # not by torch.save, so that a full disk is an OSError


def load_projector(path: Path) -> nn.Module:
    """Load the projector in a `mm_projector.bin` of this project or of LLaVA, or in a file of Honeybee's weights.

    Honeybee does not store the number of tokens; it is taken to be 144, unless a tensor `tokens` was added to the file.

    Raises:
        UserError: the file holds no projector of a known kind, or is damaged.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = {re.sub(r".*(mm_projector|abstractor)\.", "", name): tensor.float() for name, tensor in state.items()}
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    except Exception as error:
        raise UserError("projector", path, f"it can't be read ({type(error).__name__})", "fetch it again") from error
    if broken:
        raise UserError(
            "projector", path, f"its {broken[0]} holds NaN or infinity", "train it again, or fetch it again"
        )
    projector = _empty_projector(state, path)
    found, expected = shapes_of(state), shapes_of(projector.state_dict())
    for name in sorted(found | expected):
        if name not in found:
            rule = f"its {name} is missing"
        elif name not in expected:
            rule = f"its {name} belongs to no projector of this kind"
        elif found[name] != expected[name]:
            rule = f"its {name} has the shape {found[name]}, and its other tensors want {expected[name]}"
        else:
            continue
        raise UserError("projector", path, rule, "give a file that was saved whole")
    projector.to_empty(device="cpu").load_state_dict(state)
    return projector


def _empty_projector(state: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the projector whose names and shapes are those in `state`, on the meta device (without memory).

    Entries of `state` that are not weights, and the row of an old kind of C-Abstractor, are removed from it.
    """
    kind: ProjectorKind
    if "pos_emb" in state:
        kind = "c-abstractor"
    elif set(state) == {"weight", "bias"}:
        kind = "linear"
    elif set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        kind = "mlp"
    else:
        names = ", ".join(sorted(state)[:4])
        rule = f"its tensors ({names}) are neither a Linear's nor a 2-layer MLP's nor a C-Abstractor's"
        raise UserError("projector", path, rule, "give a mm_projector.bin of one of these kinds")
    try:
        with torch.device("meta"):
            if kind == "c-abstractor":
                return _empty_abstractor(state)
            llm_width, vision_width = state["weight" if kind == "linear" else "0.weight"].shape
            return build_projector(kind, vision_width, llm_width)
    except UserError as error:
        rule = f"its number of tokens, {error.value}, {error.rule}"
        raise UserError("projector", path, rule, f"store the right one in it as {_PREFIX}tokens (int64)") from error
    except (KeyError, ValueError, RuntimeError) as error:
        rule = f"its tensors have not the sizes of a projector of the kind {kind} ({type(error).__name__}: {error})"
        raise UserError("projector", path, rule, "give a file that was saved whole") from error


def _empty_abstractor(state: dict[str, Tensor]) -> CAbstractor:
    """Build the C-Abstractor whose shapes are those in `state`; see `_empty_projector`."""
    (tokens,) = state.pop("tokens").flatten().tolist() if "tokens" in state else (HONEYBEE_TOKENS,)
    _, patches, vision_width = state["pos_emb"].shape
    grid = math.isqrt(patches)
    if patches == grid**2 + 1:  # Honeybee's first models had a row for CLS too, which Honeybee's loader also drops
        state["pos_emb"] = state["pos_emb"][:, 1:]
    llm_width, hidden = state["readout.0.weight"].shape
    depth = sum(re.fullmatch(r"net\.0\.b\d+\.conv1\.conv\.weight", name) is not None for name in state)
    readout = sum(re.fullmatch(r"readout\.\d+\.weight", name) is not None for name in state)
    return CAbstractor(vision_width, llm_width, grid, int(tokens), hidden, depth, readout)


def shapes_of(state: dict[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape of each weight."""
    return {name: list(tensor.shape) for name, tensor in state.items()}
