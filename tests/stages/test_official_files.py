"""Files of the exact official forms load, give the weights that were written, and are refused if a tensor is not right.

The forms and what is known of them are in `tests/official_files.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
)

from benchmarks.official import SWINS
from examples.miniature.detector import build_tokenizer
from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import EmbeddingTable
from pad_pipeline.pretrained import load_pretrained, quiet
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.concept import ConceptSettings
from pad_pipeline.stages.dino.checkpoint import converted_folder
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.stages.sam.hub import HubSam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.training.towers import TOWERS, vision_config
from pad_pipeline.workflows.models.catalog import LICENSES, OFFICIAL
from pad_pipeline.workflows.models.settings import PRESETS
from tests.conftest import ROOT, shared
from tests.official_files import FORMS, RAM, TAGS, TINY, ram_state, read, rewrite, weights_of, write_dino_pth, write_ram

ONE = ComputeSettings(threads=1, precision="float32")
OTHER_SIZES = (
    "llmdet_base", "mm_grounding_dino", "sam_vit_l", "sam-vit-large", "sam-vit-huge", "hiera-small", "hiera-base",
    "hiera-tiny", "owlv2-large", "groundingdino_swinb", "grounding-dino-base", "llmdet_tiny",
)  # fmt: skip
"""Parts of the names of files that differ from others only in their number of layers."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(["cat"]).save_pretrained(folder)
    return folder


def load(kind: str, path: Path, tokenizer: Path) -> nn.Module:
    """Return the network that pad makes of a file or folder, with pad's own loader."""
    with quiet():
        if kind == "tagger":
            return load_ram(Ram(RAM.model_copy(update={"family": path.name.partition("_swin")[0]}), TAGS), path)
        if kind == "llm":
            return load_pretrained("llm", path, AutoModelForCausalLM, torch.float32)
        if kind == "vision":
            family = TOWERS[vision_config(path)["model_type"]]
            return load_pretrained("vision", path, family.model, torch.float32, family.extras)
        if kind == "segmenter":
            sam = SegmenterSettings(weights=str(path)).make(DecodeSettings(), ONE).sam
            return sam.model if isinstance(sam, HubSam) else sam.sam
        if kind == "concepts":
            sam3 = ConceptSettings(model=str(path)).make(DecodeSettings(), ONE).model
            return nn.ModuleList([sam3.model, sam3.decode_masks])
        settings = DetectorSettings(model=str(path), tokenizer=str(tokenizer) if path.is_file() else "")
        return settings.make(DecodeSettings(), ONE).model.model


def content(tensor: Tensor) -> bytes:
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + tensor.detach().float().numpy().tobytes()).digest()


def used(state: dict[str, Tensor], extras: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.match(extras, name)}


@pytest.mark.parametrize("name", [name for name in FORMS if not any(part in name for part in OTHER_SIZES)])
def test_an_official_form_loads_and_a_changed_one_is_refused(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """Catches weights that are left out or come from elsewhere (a joint projection is found as its three parts), a file
    that is refused for what it holds beside them, and a changed file that loads with a warning of transformers."""
    form = FORMS[name]
    path = form.write(tmp_path)
    state = read(path)
    found = {content(tensor) for tensor in load(form.kind, path, tokenizer).state_dict().values()}
    written: set[bytes] = set()
    for tensor in (tensor for one, tensor in state.items() if not re.match(form.extras, one)):
        parts = [content(tensor)]
        written.update(parts if parts[0] in found else map(content, tensor.chunk(3)))
    assert written == found

    state = read(weights_of(path))
    others = [one for one in state if one != form.key and not re.match(form.extras, one)]
    changed = state | {"unknown.weight": torch.zeros(2), others[-1]: torch.zeros(7, 5)}
    rewrite(path, {one: tensor for one, tensor in changed.items() if one != form.key})
    with pytest.raises(UserError, match="is missing|are missing") as refused:
        load(form.kind, path, tokenizer)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("change", ["missing", "unknown", "reshaped"])
@pytest.mark.parametrize(
    "name",
    ["ram_plus_swin_large_14m", "groundingdino_swint_ogc", "sam_vit_b", "google/owlv2-base-patch16-ensemble",
     "facebook/sam2.1-hiera-tiny", "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"],
)  # fmt: skip
def test_one_wrong_tensor_is_named(name: str, change: str, tokenizer: Path, tmp_path: Path) -> None:
    """One file of each loader. Catches random weights in place of a missing tensor, a tensor of another model that is
    ignored, and an error that does not say which tensor of which file is wrong."""
    form = FORMS[name]
    path = form.write(tmp_path)
    state, key = read(weights_of(path)), form.key
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state[key := "unknown.weight"] = torch.zeros(2)
    else:
        state[key] = torch.zeros(7, 5)
    rewrite(path, state)
    with pytest.raises(UserError) as refused:
        load(form.kind, path, tokenizer)
    assert str(path) in str(refused.value) and key.removeprefix("module.") in str(refused.value)
