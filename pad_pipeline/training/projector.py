"""Build, save and load a projector, which maps the vision tower's tokens to the LLM's width.

The kinds are LLaVA's two (mlp, linear), Honeybee's C-Abstractor and InternVL's pixel shuffle; the weights have the
names that they have there.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_pipeline.console import note
from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder
from pad_pipeline.training.abstractor import HONEYBEE_TOKENS, CAbstractor
from pad_pipeline.training.pixel_shuffle import FACTOR, PixelShuffle
from pad_pipeline.training.place import place_waves
from pad_pipeline.training.settings import ProjectorKind

_PREFIX = "model.mm_projector."
"""The prefix of the names of a projector's weights in LLaVA."""
_OWN = re.compile(r".*(mm_projector|abstractor|mlp1)\.")
"""Matches the prefix of the names of a projector's weights in files of LLaVA, of Honeybee and of InternVL."""


def build_projector(
    kind: ProjectorKind, vision_width: int, llm_width: int, grid: int = 0, tokens: int = HONEYBEE_TOKENS
) -> nn.Module:
    """Build a new projector from patch tokens `[B, grid * grid, vision_width]` to tokens `[B, M, llm_width]`.

    Only a C-Abstractor needs `grid` and `tokens`, its M. A pixel shuffle has one token for 2 x 2 patches, and the other
    kinds have one for each patch.

    Raises:
        UserError: for a C-Abstractor, `tokens` is not a square number from 1 to `grid * grid`; for a pixel shuffle,
            `grid` is odd.
    """
    if kind == "c-abstractor":
        return CAbstractor(vision_width, llm_width, grid, tokens)
    if kind == "pixel-shuffle":
        check_shuffle(grid)
        return PixelShuffle(vision_width, llm_width)
    first = nn.Linear(vision_width, llm_width)
    return first if kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(llm_width, llm_width))


def add_place(projector: nn.Module, grid: int, llm_width: int, size: float, learned: bool) -> None:
    """Give a projector a `place`: a vector for each of its tokens, `[M, llm_width]`, which `run_llm` adds to them.

    It begins as `place_waves`, with the root mean square `size`. It is trained if it is `learned`.
    """
    waves = size * place_waves(math.isqrt(token_count(projector, grid)), llm_width)
    projector.register_parameter("place", nn.Parameter(waves, requires_grad=learned))


def place_of(projector: nn.Module) -> Tensor | None:
    """Return the `place` of a projector, or None if it has none, see `add_place`."""
    return getattr(projector, "place", None)


def widths(projector: nn.Module) -> tuple[int, int]:
    """Return the number of channels that a projector reads, and of those that it writes."""
    if isinstance(projector, CAbstractor | PixelShuffle):
        return int(projector.sizes["vision_width"]), int(projector.sizes["llm_width"])
    layers = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    return layers[0].in_features, layers[-1].out_features


def check_shuffle(grid: int, field: str = "projector", value: object = "pixel-shuffle") -> None:
    """Check that 2 x 2 patches fill a grid. InternVL refuses an odd grid too. With padding, the tokens at the right and
    at the bottom would be half of nothing, and a region there could never cover them.

    Raises:
        UserError: the grid is odd; it has the given field and value.
    """
    if grid % FACTOR:
        rule = f"a pixel shuffle joins 2 x 2 patches, and the tower's grid of {grid} x {grid} is odd"
        remedy = "choose another projector, or a tower with an even grid such as google/siglip2-so400m-patch16-384"
        raise UserError(field, value, rule, remedy)


def token_count(projector: nn.Module, grid: int) -> int:
    """Return the number of a projector's tokens for `grid * grid` patches."""
    if isinstance(projector, CAbstractor):
        return projector.tokens
    return (grid // FACTOR) ** 2 if isinstance(projector, PixelShuffle) else grid**2


def pool(projector: nn.Module, coverage: Tensor, grid: int) -> Tensor:
    """Average the coverage `[R, grid * grid]` of R regions over the patches of each of the projector's tokens.

    The windows are the same as in the C-Abstractor's pool, and 2 x 2 patches for a pixel shuffle. Return float32
    `[R, M]`, 0..255. If there are as many tokens as patches, return `coverage` unchanged.
    """
    tokens = token_count(projector, grid)
    if tokens == grid**2:
        return coverage
    return F.adaptive_avg_pool2d(coverage.float().view(-1, grid, grid), math.isqrt(tokens)).flatten(1)


def save_projector(projector: nn.Module, path: Path) -> None:
    """Write `mm_projector.bin` with LLaVA's keys (`model.mm_projector.0.weight`, ...), atomically.

    A C-Abstractor has Honeybee's names after LLaVA's prefix, and one more tensor, `tokens` (int64): the number of
    tokens, which no weight's shape shows. A projector with a place has one more tensor, `place`, see `add_place`.
    """
    weights = projector.state_dict()
    if isinstance(projector, CAbstractor):
        weights["tokens"] = torch.tensor(projector.tokens)
    state = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = io.BytesIO()
    torch.save(state, content)
    with Folder(path.parent).commit(path.name) as partial:
        partial.write_bytes(content.getbuffer())  # torch.save itself raises no OSError when the disk is full


def load_projector(path: Path) -> nn.Module:
    """Load the projector in a `mm_projector.bin` of this project or of LLaVA, or in a file of Honeybee's or InternVL's
    weights.

    Honeybee does not store the number of tokens: it is 144, unless a tensor `tokens` was added to the file. LLaVA may
    store other weights beside the projector, such as `embed_tokens` and `image_newline`. They are left out, and a note
    names them.

    Raises:
        UserError: the file holds no projector of a known kind, or is damaged.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if own := {name for name in state if _OWN.search(name)}:
            if others := sorted(state.keys() - own):
                note(f"note: {path} also holds {', '.join(others[:4])}, which is not of the projector and is left out.")
            state = {name: state[name] for name in own}
        state = {_OWN.sub("", name): tensor.float() for name, tensor in state.items()}
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    except Exception as error:
        raise UserError("projector", path, f"it can't be read ({type(error).__name__})", "fetch it again") from error
    if broken:
        raise UserError("projector", path, f"its {broken[0]} holds NaN or infinity", "train or fetch it again")
    place = state.pop("place", None)
    projector = _empty_projector(state, path).to_empty(device="cpu")
    if place is not None:
        if place.dim() != 2 or place.shape[1] != widths(projector)[1]:
            rule = f"its place is {list(place.shape)}, and its tokens have {widths(projector)[1]} numbers"
            raise UserError("projector", path, rule, "train it again, or remove the tensor `place`")
        state["place"] = place
        projector.register_parameter("place", nn.Parameter(torch.empty_like(place)))
    try:
        projector.load_state_dict(state)
    except RuntimeError as error:
        rule = f"it can't be loaded ({' '.join(str(error).split())[:300]})"
        raise UserError("projector", path, rule, "give a complete file") from error
    return projector


def _empty_projector(state: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a projector for the weights `state`, on the meta device (without memory).

    The tensor `tokens`, which is no weight, is removed from `state`; so is a position for CLS.
    """
    kind: ProjectorKind
    if "pos_emb" in state:
        kind = "c-abstractor"
    elif set(state) == {"weight", "bias"}:
        kind = "linear"
    elif set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        kind = "mlp"
    elif set(state) == {f"{layer}.{name}" for layer in (0, 1, 3) for name in ("weight", "bias")}:
        kind = "pixel-shuffle"
    else:
        names = ", ".join(sorted(state)[:4])
        kinds = "of a Linear, nor of a 2-layer MLP, nor of a C-Abstractor, nor of a pixel shuffle"
        rule = f"its tensors ({names}) are neither those {kinds}"
        raise UserError("projector", path, rule, "give a mm_projector.bin of one of these kinds")
    try:
        with torch.device("meta"):
            if kind == "c-abstractor":
                return _empty_abstractor(state)
            first = {"linear": "weight", "mlp": "0.weight", "pixel-shuffle": "1.weight"}[kind]
            llm_width, width = state[first].shape
            return build_projector(kind, width // FACTOR**2 if kind == "pixel-shuffle" else width, llm_width)
    except UserError as error:
        rule = f"its number of tokens, {error.value}, {error.rule}"
        remedy = f"store the right number in the file as {_PREFIX}tokens (int64)"
        raise UserError("projector", path, rule, remedy) from error
    except (KeyError, ValueError, RuntimeError) as error:
        rule = f"its tensors are not the weights of a projector of kind {kind} ({type(error).__name__}: {error})"
        raise UserError("projector", path, rule, "give a complete file") from error


def _empty_abstractor(state: dict[str, Tensor]) -> CAbstractor:
    """Build a C-Abstractor for the weights `state`; see `_empty_projector`."""
    (tokens,) = state.pop("tokens").flatten().tolist() if "tokens" in state else (HONEYBEE_TOKENS,)
    _, patches, vision_width = state["pos_emb"].shape
    grid = math.isqrt(patches)
    if patches == grid**2 + 1:  # Honeybee's first models also have a row for CLS, which Honeybee's loader drops
        state["pos_emb"] = state["pos_emb"][:, 1:]
    llm_width, hidden = state["readout.0.weight"].shape
    depth = sum(re.fullmatch(r"net\.0\.b\d+\.conv1\.conv\.weight", name) is not None for name in state)
    readout = sum(re.fullmatch(r"readout\.\d+\.weight", name) is not None for name in state)
    return CAbstractor(vision_width, llm_width, grid, int(tokens), hidden, depth, readout)
