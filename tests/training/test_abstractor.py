"""Compare the C-Abstractor with a second implementation and its pooled masks with loops; read and write all projectors'
files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.training.abstractor import CAbstractor
from pad_pipeline.training.projector import build_projector, load_projector, pool, save_projector

State = dict[str, Tensor]


def small(grid: int = 6, tokens: int = 9, width: int = 8, hidden: int = 16, seed: int = 0, **sizes: int) -> CAbstractor:
    """Return a small C-Abstractor in which every weight matters: no bias is 0 and no scale is 1, as they are in a new
    one."""
    torch.manual_seed(seed)
    projector = CAbstractor(width, 12, grid, tokens, hidden=hidden, **sizes)
    with torch.no_grad():
        for weight in projector.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return projector


def windows(grid: int, pooled: int) -> list[slice]:
    """Return the patches of each cell along one edge, by the definition of adaptive pooling."""
    return [slice(i * grid // pooled, math.ceil((i + 1) * grid / pooled)) for i in range(pooled)]


def expected_forward(state: State, x: Tensor, grid: int, tokens: int, depth: int, readout: int) -> Tensor:
    """Compute the C-Abstractor from a state dict with functions written from the definitions of Honeybee and timm."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = ((x - mean) ** 2).mean(1, keepdim=True)
        scale, shift = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def stage(x: Tensor, name: str) -> Tensor:
        for i in range(1, depth + 1):
            block, came = f"{name}.b{i}", x
            x = silu(normed(F.conv2d(x, state[f"{block}.conv1.conv.weight"]), f"{block}.conv1.bn"))
            kernel = state[f"{block}.conv2.conv.weight"]
            x = silu(normed(F.conv2d(x, kernel, padding=1, groups=len(kernel)), f"{block}.conv2.bn"))
            squeezed = torch.einsum("oi,bi->bo", state[f"{block}.se.fc1.weight"][:, :, 0, 0], x.mean((2, 3)))
            squeezed = silu(squeezed + state[f"{block}.se.fc1.bias"])
            gate = torch.einsum("oi,bi->bo", state[f"{block}.se.fc2.weight"][:, :, 0, 0], squeezed)
            x = x / (1 + torch.exp(-gate - state[f"{block}.se.fc2.bias"]))[:, :, None, None]
            x = normed(F.conv2d(x, state[f"{block}.conv3.conv.weight"]), f"{block}.conv3.bn")
            if f"{block}.downsample.conv.weight" in state:
                came = normed(F.conv2d(came, state[f"{block}.downsample.conv.weight"]), f"{block}.downsample.bn")
            x = silu(x + came)
        return x

    x = x + state["pos_emb"]
    x = torch.stack([x[:, row * grid : (row + 1) * grid] for row in range(grid)], 1).permute(0, 3, 1, 2)
    x = stage(x, "net.0")
    cells = windows(grid, math.isqrt(tokens))
    x = torch.stack([torch.stack([x[:, :, i, j].mean((2, 3)) for j in cells], 2) for i in cells], 2)
    x = stage(x, "net.2")
    x = torch.stack([x[:, :, row, column] for row in range(len(cells)) for column in range(len(cells))], 1)
    for i in range(readout):
        x = (silu(x) if i else x) @ state[f"readout.{2 * i}.weight"].T + state[f"readout.{2 * i}.bias"]
    return x


def test_it_has_honeybees_number_of_parameters() -> None:
    """Catches a full instead of a depthwise 3x3, biases in the convolutions, another squeeze width, a shortcut with
    weights where the widths agree. The numbers are those of Honeybee's own module at CLIP-L/14@336 and a 7B LLM."""
    with torch.device("meta"):
        projector = CAbstractor(1024, 4096, 24)
    parts = {"net": projector.net, "readout": projector.readout}
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    assert sizes == {"net": 15_828_480, "readout": 20_979_712}
    assert projector.pos_emb.numel() == 589_824
    assert sum(weight.numel() for weight in projector.parameters()) == 37_398_016


def test_its_weights_have_honeybees_names_and_shapes() -> None:
    """Catches any renaming, and a squeeze by the block's own width instead of what comes into it: either would shut out
    Honeybee's checkpoints."""

    def block(prefix: str, downsample: bool) -> set[str]:
        convs = ["conv1", "conv2", "conv3"] + ["downsample"] * downsample
        return {f"{prefix}.{conv}.{kind}" for conv in convs for kind in ("conv.weight", "bn.weight", "bn.bias")} | {
            f"{prefix}.se.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")
        }

    blocks = [block(f"net.{part}.b{i}", part == 0 and i == 1) for part in (0, 2) for i in (1, 2, 3)]
    readout = {f"readout.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    state = small(width=8, hidden=16).state_dict()
    assert set(state) == {"pos_emb"}.union(readout, *blocks)
    assert state["net.0.b1.se.fc1.weight"].shape == (2, 16, 1, 1)
    assert state["net.0.b2.se.fc1.weight"].shape == (4, 16, 1, 1)
    assert state["net.0.b1.conv2.conv.weight"].shape == (16, 1, 3, 3)


@pytest.mark.parametrize(
    ("grid", "tokens", "width", "hidden", "sizes"),
    [
        (6, 9, 8, 16, {}),
        (6, 36, 16, 16, {}),  # as many tokens as patches, and no weights in the first shortcut
        (5, 9, 10, 16, {}),  # uneven windows; round(10 / 4) = 2
        (7, 1, 14, 8, {"depth": 1, "readout": 1}),  # round(14 / 4) = 4: to even
        (4, 4, 8, 8, {"depth": 2, "readout": 3}),
    ],
)
def test_it_computes_what_a_second_implementation_computes(
    grid: int, tokens: int, width: int, hidden: int, sizes: dict[str, int]
) -> None:
    """Catches an activation or a norm in the wrong place, a gate that is missing, rows taken for columns, a position
    that is not added."""
    projector = small(grid, tokens, width, hidden, **sizes)
    x = torch.randn(2, grid * grid, width)
    expected = expected_forward(projector.state_dict(), x, grid, tokens, sizes.get("depth", 3), sizes.get("readout", 2))
    with torch.no_grad():
        assert projector(x).shape == (2, tokens, 12)
        torch.testing.assert_close(projector(x), expected, atol=1e-5, rtol=1e-5)


def test_its_norms_have_the_eps_of_timms_blocks() -> None:
    """Catches 1e-6, the eps of timm's LayerNorm2d, which its RegNet does not use: seen where little comes in."""
    projector = small()
    with torch.no_grad():
        for name, weight in projector.named_parameters():
            if name.endswith(".conv.weight"):
                weight *= 0.003
        x = torch.randn(2, 36, 8)
        expected = expected_forward(projector.state_dict(), x, 6, 9, 3, 2)
        torch.testing.assert_close(projector(x), expected, atol=1e-5, rtol=1e-5)


def test_a_token_shows_the_patches_at_its_place() -> None:
    """Catches swapped axes: what changes in a patch at the top right shows most in the token at the top right."""
    projector = small(grid=12, tokens=36, depth=1)
    x = torch.randn(1, 144, 8)
    changed = x.clone()
    changed[0, 11] += 3
    with torch.no_grad():
        moved = (projector(changed) - projector(x)).norm(dim=-1)[0]
    assert moved.argmax() == 5


def test_the_incoming_tokens_stay_as_they_are_and_all_weights_learn() -> None:
    """Catches a position that is added in place, into the vision tower's output, and a weight that is not used."""
    projector = small()
    x = torch.randn(2, 36, 8)
    before = x.clone()
    projector(x).square().sum().backward()
    assert torch.equal(x, before)
    assert [name for name, weight in projector.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize(("tokens", "nearest"), [(143, 144), (0, 1), (-4, 1), (625, 576), (2, 1)])
def test_another_number_of_tokens_than_a_square_in_the_grid_is_refused(tokens: int, nearest: int) -> None:
    """Catches a number that is cut to another square in silence, and a pool that invents tokens."""
    with pytest.raises(UserError) as refusal:
        build_projector("c-abstractor", 8, 12, 24, tokens)
    assert (refusal.value.field, refusal.value.value) == ("abstractor_tokens", tokens)
    assert "from 1 to 576" in refusal.value.rule
    assert str(nearest) in refusal.value.remedy


@pytest.mark.parametrize(("grid", "pooled"), [(24, 12), (24, 16), (16, 12), (7, 3), (6, 1)])
def test_pooled_coverage_is_the_mean_over_each_window(grid: int, pooled: int) -> None:
    """Catches windows other than the pool's, uneven ones above all, swapped axes, and rounding."""
    coverage = np.random.default_rng(0).integers(0, 256, (3, grid, grid), dtype=np.uint8)
    coverage[1] = 255
    coverage[2] = 0
    cells = windows(grid, pooled)
    expected = np.array([[[plane[i, j].mean() for j in cells] for i in cells] for plane in coverage.astype(float)])
    found = pool(small(grid, pooled**2), torch.from_numpy(coverage).flatten(1), grid)
    assert (found.dtype, found.shape) == (torch.float32, (3, pooled * pooled))
    np.testing.assert_allclose(found.numpy(), expected.reshape(3, -1), rtol=1e-6)
    assert (found[1] == 255).all()
    assert not found[2].any()


def test_pooled_coverage_of_a_rectangle_is_what_the_rectangle_covers() -> None:
    """Catches a mask that moves or grows on its way to the tokens: the same rectangle cut for patches twice as large
    has the same coverage, but for the rounding of each patch to a 255th."""
    mask = np.zeros((60, 60), bool)
    mask[7:41, 3:22] = True
    fine, coarse = (View(size=60, patch=patch, fit="stretch").coverage(mask) for patch in (5, 10))
    pooled = pool(small(12, 36), torch.from_numpy(fine).view(1, -1), 12)
    np.testing.assert_allclose(pooled.view(6, 6).numpy(), coarse, atol=1)
    # By hand, in patches of 5: rows 7..41 cover row 1 by 3/5, rows 2 to 7 and 1/5 of row 8; columns 3..22 cover
    # column 0 by 2/5, columns 1 to 3 and 2/5 of column 4.
    rows, columns = np.array([0.3, 1, 1, 1, 0.1, 0]), np.array([0.7, 1, 0.2, 0, 0, 0])
    np.testing.assert_allclose(pooled.view(6, 6).numpy(), 255 * np.outer(rows, columns), atol=0.5)


def test_pooled_coverage_follows_the_abstractors_own_pool() -> None:
    """Catches masks and tokens that are pooled by different rules: the module's own pool is given the same planes."""
    projector = small(grid=10, tokens=49)
    coverage = torch.randint(0, 256, (4, 100), dtype=torch.uint8)
    expected = projector.net[1](coverage.float().view(4, 10, 10)).flatten(1)
    assert torch.equal(pool(projector, coverage, 10), expected)


def test_coverage_of_as_many_tokens_as_patches_is_kept_and_none_is_none() -> None:
    """Catches a loss of precision where nothing is pooled, and a batch without regions that is refused."""
    coverage = torch.arange(256, dtype=torch.uint8).view(1, 256)
    assert torch.equal(pool(small(16, 256), coverage, 16), coverage)
    assert pool(small(16, 16), coverage[:0], 16).shape == (0, 16)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_llavas_kinds_keep_their_file_to_the_byte(tmp_path: Path, kind: Any) -> None:
    """Catches anything that the third kind brings into the files of the first two."""
    projector = build_projector(kind, 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    names = ["weight", "bias"] if kind == "linear" else ["0.weight", "0.bias", "2.weight", "2.bias"]
    weights = {f"model.mm_projector.{name}": projector.get_parameter(name).detach() for name in names}
    plain = io.BytesIO()
    torch.save(weights, plain)
    assert (tmp_path / "mm_projector.bin").read_bytes() == plain.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_projector("mlp", 6, 8),
        lambda: build_projector("linear", 6, 8),
        lambda: build_projector("c-abstractor", 6, 8, 5, 16),
        lambda: build_projector("pixel-shuffle", 6, 8),
        lambda: small(6, 25, 16, 16, depth=2, readout=3),
    ],
)
def test_every_kind_comes_back_from_its_file(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    """Catches sizes that are guessed and not read, a number of tokens that is lost, weights that are not loaded, and
    weights that come back frozen."""
    projector = make()
    save_projector(projector, tmp_path / "mm_projector.bin")
    loaded = load_projector(tmp_path / "mm_projector.bin")
    patches = projector.pos_emb.shape[1] if isinstance(projector, CAbstractor) else 4
    x = torch.randn(2, patches, 16 if patches == 36 else 6)
    with torch.no_grad():
        assert torch.equal(loaded(x), projector(x))
    assert all(weight.requires_grad and not weight.is_meta for weight in loaded.parameters())
    save_projector(loaded, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "mm_projector.bin").read_bytes()


def test_a_c_abstractors_file_holds_its_own_names_and_tokens(tmp_path: Path) -> None:
    """Catches a file that other readers of `mm_projector.bin` would not understand, or would have to guess from."""
    projector = small()
    save_projector(projector, tmp_path / "mm_projector.bin")
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert set(state) == {f"model.mm_projector.{name}" for name in [*projector.state_dict(), "tokens"]}
    assert (state["model.mm_projector.tokens"].dtype, state["model.mm_projector.tokens"].item()) == (torch.int64, 9)


@pytest.mark.parametrize("row_for_cls", [False, True])
def test_honeybees_weights_load_with_its_own_prefix_and_number_of_tokens(tmp_path: Path, row_for_cls: bool) -> None:
    """Catches another default than Honeybee's 144, and its first checkpoints' position for CLS taken for a patch's."""
    projector = small(grid=16, tokens=144)
    state = {f"abstractor.{name}": tensor for name, tensor in projector.state_dict().items()}
    if row_for_cls:
        state["abstractor.pos_emb"] = torch.cat([torch.full((1, 1, 8), 9.0), projector.pos_emb.detach()], 1)
    torch.save(state, tmp_path / "honeybee.bin")
    loaded = load_projector(tmp_path / "honeybee.bin")
    x = torch.randn(1, 256, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), projector(x))


def broken(kind: Any, change: Callable[[State], object]) -> Any:
    """Return the content of a projector's file that was damaged by `change`.

    `change` gets the weights by their names without the prefix. Where it returns something, that is the content.
    """
    projector = small() if kind == "c-abstractor" else build_projector(kind, 6, 8)
    state = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    if kind == "c-abstractor":
        state["tokens"] = torch.tensor(9)
    changed = change(state)
    return {f"model.mm_projector.{name}": tensor for name, tensor in state.items()} if changed is None else changed


def put(name: str, tensor: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: tensor})


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


@pytest.mark.parametrize(
    ("kind", "change", "rule"),
    [
        ("mlp", put("0.bias", torch.zeros(7)), "size mismatch for 0.bias"),
        ("mlp", put("2.weight", torch.zeros(8, 9)), "size mismatch for 2.weight"),
        ("mlp", put("0.weight", torch.zeros(8)), "not the weights of a projector of kind mlp"),
        ("mlp", put("0.weight", torch.full((8, 6), math.nan)), "0.weight holds NaN"),
        ("mlp", put("4.weight", torch.zeros(8, 8)), "(0.bias, 0.weight, 2.bias, 2.weight) are neither"),
        ("mlp", drop("2.bias"), "(0.bias, 0.weight, 2.weight) are neither"),
        ("linear", put("bias", torch.tensor(math.inf).expand(8)), "bias holds NaN or infinity"),
        ("linear", put("weight", torch.zeros(8, 6, 1, 1)), "not the weights of a projector of kind linear"),
        ("linear", lambda state: state.clear(), "neither"),
        ("linear", lambda state: [1, 2], "can't be read"),
        ("linear", lambda state: {"model.mm_projector.weight": 3, "model.mm_projector.bias": 4}, "can't be read"),
        ("linear", lambda state: {1: torch.zeros(3)}, "can't be read"),
        ("linear", lambda state: Path("not a tensor"), "can't be read"),
        ("c-abstractor", drop("net.2.b2.se.fc1.bias"), 'Missing key(s) in state_dict: "net.2.b2.se.fc1.bias"'),
        ("c-abstractor", drop("readout.0.weight"), "KeyError: 'readout.0.weight'"),
        ("c-abstractor", drop("net.0.b3.conv1.conv.weight"), "Unexpected key(s)"),
        ("c-abstractor", drop("pos_emb"), "are neither"),
        ("c-abstractor", put("eos_tokens", torch.zeros(1, 2, 12)), 'Unexpected key(s) in state_dict: "eos_tokens"'),
        ("c-abstractor", put("pos_emb", torch.zeros(1, 35, 8)), "size mismatch for pos_emb"),
        ("c-abstractor", put("pos_emb", torch.zeros(36, 8)), "not the weights of a projector of kind c-abstractor"),
        ("c-abstractor", put("pos_emb", torch.zeros(1, 36, 9)), "size mismatch"),
        ("c-abstractor", put("readout.0.weight", torch.zeros(12)), "not the weights"),
        ("c-abstractor", put("net.0.b1.se.fc1.weight", torch.zeros(2, 16)), "size mismatch for net.0.b1.se.fc1.weight"),
        ("c-abstractor", put("net.2.b1.conv2.bn.weight", torch.full((16,), math.nan)), "conv2.bn.weight holds NaN"),
        ("c-abstractor", put("tokens", torch.tensor(10)), "its number of tokens, 10, must be a square number"),
        ("c-abstractor", put("tokens", torch.tensor([9, 9])), "not the weights"),
        ("c-abstractor", drop("tokens"), "its number of tokens, 144, must be a square number from 1 to 36"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, kind: str, change: Any, rule: str) -> None:
    """Catches a traceback, and a damaged projector that is loaded all the same."""
    path = tmp_path / "mm_projector.bin"
    torch.save(broken(kind, change), path)
    with pytest.raises(UserError) as refusal:
        load_projector(path)
    assert (refusal.value.field, refusal.value.value) == ("projector", path)
    assert rule in refusal.value.rule
    assert refusal.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Catches a traceback for a missing, empty or cut file."""
    path = tmp_path / "mm_projector.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        load_projector(path)
