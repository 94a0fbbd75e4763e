"""The patches of every family of vision towers lie where the view says: changed pixels move the token that covers them.

The towers are small and random. What a patch shows is found by changing pixels of the image, and not by a formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    Tipsv2VisionConfig,
    Tipsv2VisionModel,
)

from benchmarks.towers import SIZES, tower_cost
from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit, View
from pad_pipeline.pretrained import quiet
from pad_pipeline.report.overlay import EDGE, _patches
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.examples import Preprocessor
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.projector import save_projector
from pad_pipeline.training.towers import preprocessing, vision_config
from tests.conftest import ROOT
from tests.training.trained_models import EYES, build, difference, stock

Pad = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("no_gpu")
MLP = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2}


class Made(NamedTuple):
    """A small tower of a family: its class and config, and what is known of it by other means."""

    kind: Any
    config: Any
    grid: int
    prefix: int
    """The special tokens before the patches, counted from the family's paper."""


FAMILIES = {
    "clip": Made(CLIPVisionModel, CLIPVisionConfig(image_size=70, patch_size=14, **EYES), 5, 1),
    "siglip": Made(SiglipVisionModel, SiglipVisionConfig(image_size=64, patch_size=16, **EYES), 4, 0),
    # As so400m-patch14-384, whose 27 x 27 patches are 378 pixels wide: 5 x 5 patches of the upper left 70 of 76 pixels.
    "siglip-rest": Made(SiglipVisionModel, SiglipVisionConfig(image_size=76, patch_size=14, **EYES), 5, 0),
    "dinov2": Made(Dinov2Model, Dinov2Config(image_size=70, patch_size=14, **MLP), 5, 1),
    "dinov2-registers": Made(
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(image_size=70, patch_size=14, num_register_tokens=4, **MLP), 5, 5,
    ),
    "dinov3": Made(
        DINOv3ViTModel,
        DINOv3ViTConfig(image_size=64, patch_size=16, num_register_tokens=4, **EYES | {"num_attention_heads": 2}), 4, 5,
    ),
    "tipsv2": Made(Tipsv2VisionModel, Tipsv2VisionConfig(image_size=70, patch_size=14, **MLP), 5, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def towers(parts: Path) -> Path:
    """Write a small tower of each family beside the small LLMs, with random weights."""
    with quiet(), torch.random.fork_rng():
        for name, made in FAMILIES.items():
            torch.manual_seed(0)
            made.kind(made.config).save_pretrained(parts / f"tower-{name}")
    return parts


def moved(model: MultimodalModel, preprocessor: Preprocessor, masks: list[np.ndarray]) -> np.ndarray:
    """Return how far each patch of the tower moves when a dark image becomes bright under each mask, float
    `[masks, grid * grid]`."""
    dark = np.random.default_rng(0).integers(20, 60, (*masks[0].shape, 3), dtype=np.uint8)
    images = [dark, *(np.where(mask[..., None], 255 - dark, dark) for mask in masks)]
    pixels = torch.stack([preprocessor.normalized(Image.fromarray(image)) for image in images])
    old, *new = model.encode_patches(pixels)
    assert len(old) == preprocessor.view.grid**2
    return (torch.stack(new) - old).norm(dim=-1).numpy()


def prepared(towers: Path, name: str, fit: Fit, **settings: Any) -> tuple[MultimodalModel, Preprocessor]:
    model = build(towers, "qwen2", f"tower-{name}", **settings)
    config = model.vision_config
    view = View(size=config["image_size"], patch=config["patch_size"], fit=fit)
    assert (view.grid, config["prefix_tokens"]) == FAMILIES[name][2:]
    return model, Preprocessor(view, model.mean, model.std, model.vision_tokens, model.resample)


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize(("fit", "size"), [("crop", (345, 210)), ("pad", (140, 230)), ("stretch", (240, 150))])
def test_each_patch_of_pixels_moves_the_token_that_covers_it(
    towers: Path, name: str, fit: Fit, size: tuple[int, int]
) -> None:
    """A small square of an image is changed at many places: the token that moves most is the patch of the greatest
    coverage of that square. Catches a transposed grid, tokens that are off by CLS or a register, patches that are
    spread over the pixels that the tower drops, and a view that cuts masks in another place than images."""
    model, preprocessor = prepared(towers, name, fit)
    masks, expected = [], []
    for top in range(0, size[1] - 21, 5):
        for left in range(0, size[0] - 21, 5):
            around, mask = np.zeros(size[::-1], bool), np.zeros(size[::-1], bool)
            around[top : top + 22, left : left + 22] = mask[top + 5 : top + 17, left + 5 : left + 17] = True
            touched = preprocessor.view.coverage(around).flatten().nonzero()[0].tolist()
            within = preprocessor.view.coverage(mask).any()  # and not beyond the edge of the view
            # Squares near an edge between patches are left out, because the resize blurs over it.
            if within and len(touched) == 1 and expected.count(touched[0]) < 4:
                masks.append(mask)
                expected += touched
    assert moved(model, preprocessor, masks).argmax(1).tolist() == expected
    # Every patch was tried, but for those that show only padding.
    grid = preprocessor.view.grid
    assert len(set(expected)) >= grid * (grid - 2 * (fit == "pad"))


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize(("fit", "size"), [("crop", (345, 210)), ("pad", (140, 230)), ("stretch", (240, 150))])
def test_a_rectangle_moves_the_tokens_that_it_covers_most(
    towers: Path, name: str, fit: Fit, size: tuple[int, int]
) -> None:
    """Catches the same for a mask of several patches, higher than wide, away from the center; before the first layer,
    because attention spreads it over the whole image."""
    model, preprocessor = prepared(towers, name, fit, vision_layer=-4)
    mask = np.zeros(size[::-1], bool)
    mask[size[1] // 20 : 3 * size[1] // 5, size[0] // 4 : 7 * size[0] // 10] = True
    coverage = preprocessor.view.coverage(mask).flatten()
    distance = moved(model, preprocessor, [mask])[0]
    assert sum(coverage > 100) >= 2
    assert distance[coverage > 100].min() > 3 * distance[coverage == 0].max()


def test_the_pixels_that_fill_no_patch_move_nothing(towers: Path) -> None:
    """The last 6 of the 76 pixels, on the right and at the bottom. Catches a tower that is given a resized view, and a
    coverage that counts them."""
    model, preprocessor = prepared(towers, "siglip-rest", "stretch")
    mask = np.ones((76, 76), bool)
    mask[:70, :70] = False
    assert not moved(model, preprocessor, [mask]).any()
    assert not preprocessor.view.coverage(mask).any()
    mask[69, 69] = True
    assert moved(model, preprocessor, [mask]).argmax() == 24
    assert preprocessor.view.coverage(mask).flatten().nonzero()[0].tolist() == [24]


def test_preprocessing_is_the_familys_or_the_folders(towers: Path, tmp_path: Path) -> None:
    """Catches CLIP's normalization for DINO, SigLIP 2's and DINOv3's bilinear resize taken for bicubic, and TIPSv2's
    pixels of 0..1 that are normalized."""
    found = {name: preprocessing(towers / f"tower-{name}") for name in FAMILIES}
    assert {name: one.resample for name, one in found.items()} == {
        "clip": 3, "siglip": 3, "siglip-rest": 3, "dinov2": 3, "dinov2-registers": 3, "dinov3": 2, "tipsv2": 2,
    }  # fmt: skip
    assert found["dinov3"].mean == found["dinov2"].mean == [0.485, 0.456, 0.406]
    assert found["tipsv2"][:2] == ([0.0] * 3, [1.0] * 3)
    (tmp_path / "config.json").write_bytes((towers / "tower-siglip/config.json").read_bytes())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert preprocessing(tmp_path) == ([0.5] * 3, [0.5] * 3, 2)
    file.write_text(json.dumps({"do_normalize": False, "image_mean": [0.5] * 3}))
    assert preprocessing(tmp_path)[:2] == ([0.0] * 3, [1.0] * 3)
    file.write_text(json.dumps({"resample": "bicubic"}))
    with pytest.raises(UserError, match="none of Pillow's filters"):
        preprocessing(tmp_path)


def test_the_tower_of_a_whole_siglip_loads_and_naflex_is_refused(towers: Path, tmp_path: Path) -> None:
    """SigLIP 2 of fixed size is published as a whole model of the type `siglip`. Catches a size that is read from the
    outer config, and NaFlex, whose patches have no fixed grid, taken for it."""
    vision = {"image_size": 64, "patch_size": 16, **EYES}
    text = {"vocab_size": 30, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}
    with quiet():
        SiglipModel(SiglipConfig(vision_config=vision, text_config=text | {"num_attention_heads": 4})).save_pretrained(
            tmp_path / "whole"
        )
    assert build(towers, "qwen2", str(tmp_path / "whole")).grid == 4
    assert vision_config(tmp_path / "whole")["prefix_tokens"] == 0
    (tmp_path / "naflex").mkdir()
    (tmp_path / "naflex/config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match=r"NaFlex.*google/siglip2-so400m"):
        vision_config(tmp_path / "naflex")


@pytest.mark.parametrize(
    ("name", "projector"),
    [*((name, kind) for name in FAMILIES for kind in ("mlp", "pixel-shuffle")), ("dinov3", "c-abstractor")],
)
def test_an_exported_model_gives_the_trainings_logits(towers: Path, name: str, projector: str, tmp_path: Path) -> None:
    """Catches registers that stock LLaVA leaves among the patches, a folder that stock code takes for stock LLaVA, a
    processor that writes another number of image marks or resizes with another filter, and an analysis that takes CLS
    for a patch."""
    made = FAMILIES[name]
    if projector == "pixel-shuffle" and made.grid % 2:
        with pytest.raises(UserError, match=r"the tower's grid of 5 x 5 is odd.*siglip2-so400m-patch16-384"):
            build(towers, "qwen2", f"tower-{name}", projector=projector)
        return
    model = build(towers, "qwen2", f"tower-{name}", projector=projector, abstractor_tokens=4)
    view = View(size=made.config.image_size, patch=made.config.patch_size, fit="pad")
    export_llava(model, view, tmp_path / "hf")
    save_projector(model.projector, tmp_path / "mm_projector.bin")
    chat = Chat(tmp_path / "hf")
    assert difference(model, chat.model) < 1e-5
    is_stock = projector == "mlp" and made.prefix <= 1
    assert (json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "llava") == is_stock
    assert sorted(path.name for path in (tmp_path / "hf").glob("*.py")) == ([] if is_stock else sorted(
        ["abstractor.py", "llava_abstractor.py"]
        + ["llava_patches.py", "pixel_shuffle.py"] * (projector == "pixel-shuffle" or made.prefix > 1)
    ))  # fmt: skip
    if is_stock:
        assert difference(model, stock(tmp_path / "hf")) < 1e-5
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    ours = Preprocessor(view, model.mean, model.std, model.vision_tokens, model.resample).normalized(image)
    inputs = chat.prepare(image, "What?")
    assert (inputs["pixel_values"][0] - ours).abs().max() < 1e-5
    assert (inputs["input_ids"] == chat.model.config.image_token_index).sum() == model.vision_tokens
    tower, llm = str(towers / f"tower-{name}"), str(towers / "qwen2")
    whole, parts = Subject(tmp_path / "hf"), Subject(tmp_path / "mm_projector.bin", tower, llm)
    with torch.no_grad():
        patches, tokens = model.encode_patches(ours[None]), model.encode_images(ours[None])
    for subject in (whole, parts):
        again = subject.preprocessor(view).normalized(image)[None]
        for found, wanted in zip(subject.encode_images(again), (patches, tokens), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_docs_have_the_costs_that_are_counted() -> None:
    """Catches a table that is out of date, and a count that misses a layer or the attention: CLIP-L/14 at 336 px is
    computed by hand."""
    page = (ROOT / "docs/howto/llm.md").read_text("utf-8")
    for name in ("openai/clip-vit-large-patch14-336", "google/siglip2-so400m-patch14-384", "google/tipsv2-b14"):
        row = next(one for one in SIZES if one[0] == name)
        flop, parameters = tower_cost(*row[1:])
        cells = [name, *next(line for line in page.splitlines() if line.startswith(f"| {name} |")).split(" | ")[1:]]
        assert cells[5:] == [f"{parameters / 1e6:.0f} M", f"{flop / 1e9:.0f} |"]
        if "clip" in name:
            blocks = 24 * 577 * 12 * 1024**2 + 24 * 2 * 577**2 * 1024 + 576 * 3 * 14**2 * 1024
            assert flop == pytest.approx(2 * blocks, rel=1e-6)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_last_layer_and_the_one_before_it_are_exported_alike(towers: Path, name: str, tmp_path: Path) -> None:
    """Catches a state after the last norm in one of the two, which transformers puts there for some models."""
    model = build(towers, "qwen2", f"tower-{name}", vision_layer=-1)
    made = FAMILIES[name]
    export_llava(model, View(size=made.config.image_size, patch=made.config.patch_size), tmp_path)
    assert difference(model, Chat(tmp_path).model) < 1e-5


def test_shards_of_a_grid_that_leaves_pixels_out_go_the_whole_way(
    pad: Pad, towers: Path, shards: Path, tmp_path: Path
) -> None:
    """Shards are cut again for 76 pixels in patches of 14, trained on, analyzed with drawings, verified and reported.
    Catches any step that takes the grid for the whole square, and pixels that are left out in silence."""
    rest = "5 x 5 patches of 14 pixels, in its upper left 70 x 70 pixels"
    done = pad("retarget", shards, "--view-size", 76, "--fit", "pad", "--out", tmp_path / "cut")
    assert (done.code, f"a view of 76 pixels is {rest}" in done.err) == (0, True), done.err
    assert pad("verify", tmp_path / "cut", "--deep").code == 0
    assert pad("report", tmp_path / "cut", "--out", tmp_path / "report").code == 0
    assert any(rest in page.read_text("utf-8") for page in (tmp_path / "report").rglob("*.html"))
    models = ["--vision", towers / "tower-siglip-rest", "--llm", towers / "qwen2"]
    done = pad("train", "--shards", tmp_path / "cut", *models, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "t")
    assert done.code == 0, done.err
    options = ["--shards", tmp_path / "cut", "--limit", 3, "--drawings", 1, "--out", tmp_path / "found"]
    done = pad("analyze", "all", "--model", tmp_path / "t", *options)
    assert done.code == 0, done.err


def test_an_overlay_draws_the_patches_where_they_are() -> None:
    """4 of 5 columns of 20 pixels, in a view of 100. Catches 4 patches that are stretched over the whole view."""
    view = View(size=100, patch=23, fit="stretch")  # 4 x 4 patches of the upper left 92 pixels
    coverage = np.zeros((1, 4, 4), np.uint8)
    coverage[0, 3, 3] = 255
    regions = [{"label": "thing"} for _ in coverage]
    drawn = np.asarray(_patches(Image.new("RGB", (100, 100)), regions, coverage, view))  # type: ignore[arg-type]
    tinted = (drawn.max(2) > 0) & (drawn != 255).any(2)
    rows, columns = tinted.nonzero()
    found = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) * 100 / EDGE
    np.testing.assert_allclose(found, [69, 92, 69, 92], atol=0.6)
