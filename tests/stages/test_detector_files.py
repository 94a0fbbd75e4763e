"""Files of a detector: official ones give the official code's numbers, and unusable ones are refused by name."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.records import Shard
from pad_pipeline.stages.compute import Compute
from pad_pipeline.stages.dino.checkpoint import converted_folder
from pad_pipeline.stages.dino.network import GroundingDino
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.workflows.models.settings import ModelSettings
from tests.stages.detector import DECODING, TWO, tagged


def drawn_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that upstream's network was given when the golden numbers were made, from its name alone."""
    name = re.sub(r"^(transformer\.decoder\.)?bbox_embed\.\d+", "bbox_embed.0", name)
    if name.endswith("relative_position_index"):
        return torch.zeros(shape, dtype=torch.long)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    uniform = (raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    if name.endswith("relative_position_bias_table"):
        value = uniform / 2
    elif name.endswith("sampling_offsets.bias"):
        value = uniform * 2
    elif name.endswith("bias"):
        value = uniform / 10
    elif len(shape) == 1:
        value = 1 + uniform / 5
    elif "embed" in name and "layers" not in name and "patch_embed" not in name:
        value = uniform
    else:
        value = uniform * math.sqrt(3 / math.prod(shape[1:])) * 1.2
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Grounding DINO in the format of the official files, with drawn weights."""
    golden = json.loads((Path(__file__).parent / "groundingdino.json").read_text())
    state = {f"module.{name}": drawn_tensor(name, tuple(shape)) for name, shape in golden["shapes"].items()}
    path = tmp_path_factory.mktemp("official") / "groundingdino_small.pth"
    torch.save({"model": state}, path)
    return path


def test_official_checkpoints_give_upstreams_golden_numbers(official: Path) -> None:
    """Names, joint projections, orders of norms: one wrong rename changes every number. Logits and boxes to 1e-4 of
    what groundingdino-py gave for one caption alone."""
    golden = json.loads((Path(__file__).parent / "groundingdino.json").read_text())
    model = GroundingDino(converted_folder(official), Compute(TWO))
    key, height, width = golden["image"].values()
    raw = np.random.Philox(key=key).random_raw(3 * height * width)
    image = torch.from_numpy((raw >> np.uint64(56)).astype(np.uint8).reshape(3, height, width))
    probabilities, boxes = model.detect(model.encode([image], (height, width)), [0], [golden["ids"]])
    # Of the scores their logits, because a sigmoid makes all low scores alike.
    logits, wanted = torch.logit(probabilities[0, :, : len(golden["ids"])].double()), torch.tensor(golden["logits"])
    assert wanted.std() > 1, "scores that are all alike would make this test blind"
    assert (logits - wanted).abs().max() < 1e-4
    assert (boxes[0] - torch.tensor(golden["boxes"])).abs().max() < 1e-4


@pytest.mark.slow
def test_an_official_checkpoint_is_a_detector(
    official: Path, models: ModelSettings, world: World, tmp_path: Path
) -> None:
    """By its path, with a tokenizer beside it; converted once, and loaded from the cache the second time."""
    settings = DetectorSettings(
        model=str(official), tokenizer=models.annotator(DetectorSettings).model, box_threshold=0.0
    )
    with pytest.raises(UserError, match=r"detector\.tokenizer .* built into the model"):
        Detector(settings.model_copy(update={"tokenizer": models.llm.llm}), DECODING, TWO)
    large = AutoTokenizer.from_pretrained(models.annotator(DetectorSettings).model)
    large.add_tokens([f"word{number}" for number in range(100)])
    large.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"detector\.tokenizer .* knows 1130 tokens, and the model 1100"):
        Detector(settings.model_copy(update={"tokenizer": str(tmp_path)}), DECODING, TWO)
    Detector(settings, DECODING, TWO)
    (row,) = Detector(settings, DECODING, TWO)(Shard(0, tagged(world, 1, ["cat", "dog"]))).rows
    assert row.status == "ok", row.reason


def test_files_that_are_no_grounding_dino_are_named(tmp_path: Path, official: Path) -> None:
    """SAM's weights given as the detector's, half a file, a tensor too many."""
    torch.save(
        {"image_encoder.pos_embed": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1)},
        tmp_path / "sam.pth",
    )
    with pytest.raises(UserError, match=r"look like SAM, and should be an official Grounding DINO's"):
        converted_folder(tmp_path / "sam.pth")
    whole = official.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        converted_folder(tmp_path / "cut.pth")
    state = torch.load(official, weights_only=True)["model"]
    torch.save({"model": state | {"module.transformer.extra": torch.zeros(1)}}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"transformer\.extra is unknown"):
        converted_folder(tmp_path / "more.pth")


def test_a_damaged_cache_is_made_anew(official: Path, own_cache: Path) -> None:
    """ "Fetch the file again" was no help: the same file leads to the same damaged copy."""
    folder = converted_folder(official)
    whole = (folder / "model.safetensors").read_bytes()
    for damage in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        (folder / "model.safetensors").write_bytes(damage)
        assert converted_folder(official) == folder
        assert (folder / "model.safetensors").read_bytes() == whole


def test_a_model_folder_can_name_no_weights_or_code_elsewhere(models: ModelSettings, tmp_path: Path) -> None:
    """The pinned hash was of model.safetensors, and what was loaded was another file, anywhere on the disk."""
    folder = tmp_path / "detector"
    shutil.copytree(models.annotator(DetectorSettings).model, folder)
    settings = DetectorSettings(model=str(folder))
    config = json.loads((folder / "config.json").read_text())
    for entry in ({"transformers_weights": "other.safetensors"}, {"attn_implementation": "evil/kernel"}):
        (folder / "config.json").write_text(json.dumps(config | entry))
        with pytest.raises(UserError, match=f"sets {next(iter(entry))} to"):
            Detector(settings, DECODING, TWO)
    (folder / "config.json").write_text(json.dumps(config))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.level_embed": "../elsewhere/model.safetensors"}}))
    with pytest.raises(UserError, match="it names weights elsewhere"):
        Detector(settings, DECODING, TWO)
    index.unlink()
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    for entry in ({"size": {"max_height": 9, "max_width": 9}}, {"do_resize": False}, {"image_std": [0, 0, 0]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | entry))
        with pytest.raises(UserError, match=r"preprocessor_config\.json can't be used"):
            Detector(settings, DECODING, TWO)
