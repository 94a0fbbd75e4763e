"""Describe the vision towers: everything that differs between their families, and what a tower's folder says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    SiglipVisionModel,
    Tipsv2VisionModel,
)

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit, View
from pad_pipeline.pretrained import read_config

BILINEAR, BICUBIC = 2, 3
"""The numbers of Pillow's filters, which preprocessor_config.json has as `resample`."""


class Preprocessing(NamedTuple):
    """How a vision tower's pixels are made from its view of an image."""

    mean: list[float]
    """The mean of the normalization, per channel, 0..1."""
    std: list[float]
    """The standard deviation of the normalization, per channel, 0..1."""
    resample: int
    """The number of Pillow's filter for the resize."""


class Family(NamedTuple):
    """What the towers of a family have in common."""

    model: Any
    """The class in transformers. Its config class has the family's defaults of image and patch size."""
    cls: bool
    """Whether a CLS token stands before the patches. Registers, of which config.json gives the number, follow it."""
    preprocessing: Preprocessing
    """The values for a folder without preprocessor_config.json: those of the official checkpoints."""
    extras: str | None = None
    """A regular expression for the tensors of a whole model that its tower does not have; see `load_pretrained`."""


CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_TEXT = r"text_model\.|(text|visual)_projection\.weight$|logit_(scale|bias)$|temperature$"
"""The tensors for texts, and those that compare texts with images."""
_CLIP = Family(CLIPVisionModel, True, Preprocessing(CLIP_MEAN, CLIP_STD, BICUBIC), _TEXT)
_SIGLIP = Family(SiglipVisionModel, False, Preprocessing([0.5] * 3, [0.5] * 3, BICUBIC), _TEXT)
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# TIPSv2 takes pixels of 0..1 as they are.
_TIPS = Family(Tipsv2VisionModel, True, Preprocessing([0.0] * 3, [1.0] * 3, BILINEAR), _TEXT)
TOWERS = {
    "clip": _CLIP, "clip_vision_model": _CLIP,
    "siglip": _SIGLIP, "siglip_vision_model": _SIGLIP,
    "dinov2": Family(Dinov2Model, True, Preprocessing(*_IMAGENET, BICUBIC)),
    "dinov2_with_registers": Family(Dinov2WithRegistersModel, True, Preprocessing(*_IMAGENET, BICUBIC)),
    "dinov3_vit": Family(DINOv3ViTModel, True, Preprocessing(*_IMAGENET, BILINEAR)),
    "tipsv2": _TIPS, "tipsv2_vision_model": _TIPS,
}  # fmt: skip
"""The families of vision towers, by the `model_type` in config.json. The fixed-size models of SigLIP 2 are of the type
`siglip`."""


def vision_config(folder: Path) -> dict[str, Any]:
    """Return a tower's `model_type`, `image_size`, `patch_size` (both in pixels), and `prefix_tokens`: the number of
    special tokens (CLS, registers) before the patches. If the patches do not fill the image, see `View.patch`.

    Raises:
        UserError: the folder holds no tower of a known type.
    """
    path = folder / "config.json"
    if path.is_file() and re.search(r'"model_type":\s*"siglip2', path.read_text("utf-8", "replace")):
        rule = "it is a SigLIP 2 of the kind NaFlex, whose images have many shapes and so no fixed grid"
        raise UserError("vision", folder, rule, "give one of fixed size, such as google/siglip2-so400m-patch16-384")
    config = read_config("vision", folder, set(TOWERS))
    inner = config.get("vision_config", config)  # the config of a whole CLIP contains its tower's config
    family = TOWERS[config["model_type"]]
    defaults = family.model.config_class()
    found = {name: inner.get(name, getattr(defaults, name)) for name in ("image_size", "patch_size")}
    if not all(type(value) is int and value > 0 for value in found.values()):
        raise UserError("vision", folder, f"its config.json says {found}", "fetch it again")
    if found["image_size"] < found["patch_size"]:
        rule = f"its config.json has patches of {found['patch_size']} px in images of {found['image_size']} px"
        raise UserError("vision", folder, rule, "fetch it again")
    registers = inner.get("num_register_tokens", getattr(defaults, "num_register_tokens", 0))
    if type(registers) is not int or registers < 0:
        raise UserError("vision", folder, f"its config.json has {registers!r} registers", "fetch it again")
    return found | {"model_type": config["model_type"], "prefix_tokens": family.cls + registers}


def view_of(folder: Path, fit: Fit) -> View:
    """Return a vision tower's view, with the given fit."""
    config = vision_config(folder)
    return View(size=config["image_size"], patch=config["patch_size"], fit=fit)


def check_view(view: View, folder: Path, vision: str) -> None:
    """Check that the tower in `folder` takes images and patches of the size of the shards' view.

    Raises:
        UserError: a size differs.
    """
    config = vision_config(folder)
    size, patch = config["image_size"], config["patch_size"]
    if (size, patch) != (view.size, view.patch):
        made = f"{view.size} px in patches of {view.patch} ({view.fit}, a grid of {view.grid} x {view.grid})"
        rule = f"it takes images of {size} px in patches of {patch} px, and the shards are made for {made}"
        remedy = f"use the matching tower, or build shards with `size` {size} and `patch` {patch}"
        raise UserError("vision", vision, rule, remedy)


def preprocessing(folder: Path) -> Preprocessing:
    """Return how a tower's pixels are made, from preprocessor_config.json; without that file, as its family does.

    Raises:
        UserError: the file is damaged.
    """
    mean, std, resample = TOWERS[vision_config(folder)["model_type"]].preprocessing
    try:
        config = json.loads((folder / "preprocessor_config.json").read_text())
        if config.get("do_normalize") is False:
            mean, std = [0.0] * 3, [1.0] * 3
        else:
            mean, std = config.get("image_mean", mean), config.get("image_std", std)
        resample = config.get("resample", resample)
    except OSError:
        return Preprocessing(mean, std, resample)
    except (ValueError, RecursionError) as error:
        rule = f"its preprocessor_config.json is no JSON ({error})"
        raise UserError("vision", folder, rule, "fetch it again") from error
    if not all(
        isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        for values in (mean, std)
    ) or not min(std):
        rule = f"its preprocessor_config.json has image_mean {mean} and image_std {std}, not 3 numbers of 0..1 each"
        raise UserError("vision", folder, rule, "fetch it again")
    if type(resample) is not int or not 0 <= resample <= 5:
        rule = f"its preprocessor_config.json has resample {resample!r}, which is none of Pillow's filters, 0 to 5"
        raise UserError("vision", folder, rule, "fetch it again")
    return Preprocessing(mean, std, resample)
