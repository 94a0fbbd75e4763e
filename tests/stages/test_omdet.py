"""Tags -> boxes by OmDet-Turbo: transformers' own numbers, exact labels, batches that change nothing."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer, OmDetTurboConfig, OmDetTurboForObjectDetection, OmDetTurboProcessor
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.packages import installed
from pad_pipeline.pretrained import quiet
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.omdet import OmDetDetector
from tests.conftest import record
from tests.hub_models import OMDET_QUERIES, write_omdet

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)
ALL = {"box_threshold": 0.0, "nms_iou": 1.0, "nms_iou_across_labels": 1.0, "min_size": 0.0, "unboxable": ""}
TAGS = ["house", "car", "roof"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_omdet(tmp_path_factory.mktemp("omdet"))


def stage(folder: Path, compute: ComputeSettings = TWO, **changed: object) -> OmDetDetector:
    made = DetectorSettings.model_validate({"model": str(folder), **ALL, **changed}).make(DECODING, compute)
    assert isinstance(made, OmDetDetector)
    return made


def tagged(world: World, *tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in its])
        for index, its in enumerate(tags)
    ]


def by_transformers(folder: Path, path: Path, tags: list[str]) -> dict[str, Any]:
    """What transformers' processor finds in an image: every pair of box and tag."""
    image = decode(path.read_bytes(), DECODING)[0]
    processor = OmDetTurboProcessor(
        DetrImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    with quiet(), torch.inference_mode():
        model = OmDetTurboForObjectDetection.from_pretrained(folder).eval()
        inputs = processor(images=image, text=[tags], return_tensors="pt")
        (found,) = processor.post_process_grounded_object_detection(
            model(**inputs), text_labels=[tags], threshold=0.0, nms_threshold=1.0,
            target_sizes=[(image.height, image.width)], max_num_det=OMDET_QUERIES * len(tags),
        )  # fmt: skip
    return dict(found)


def test_boxes_are_those_of_transformers_called_directly(folder: Path, world: World) -> None:
    """By folder name alone, against transformers' processor, model and post-processing: the best tag of each box, with
    its score to 1e-5 and its box to 1e-3 pixels, and the scores of the other tags."""
    wanted = by_transformers(folder, world.images / "scene-00001.png", TAGS)
    assert len(wanted["scores"]) == OMDET_QUERIES * len(TAGS)
    row = tagged(world, [], TAGS)[1]
    (row,) = stage(folder, text_threshold=0.0)(Shard(0, [row])).rows
    assert row.status == "ok", row.reason
    assert len(row.regions) == OMDET_QUERIES
    assert len({region.label for region in row.regions}) > 1, "one label everywhere would make this test blind"
    boxes, scores = wanted["boxes"].numpy(), wanted["scores"].numpy()
    used = set()
    for region in row.regions:
        given = {region.label: region.score} | {other.label: other.score for other in region.alternates}
        assert sorted(given) == sorted(TAGS) and region.score == max(given.values())
        for label, score in given.items():
            of_label = [index for index, text in enumerate(wanted["text_labels"]) if text == label]
            far = np.abs(boxes[of_label] - region.box).max(1) + 1e3 * np.abs(scores[of_label] - score)
            assert far.min() < 1e-2
            used.add(of_label[int(far.argmin())])
    assert len(used) == OMDET_QUERIES * len(TAGS)


def test_an_image_gives_the_same_alone_and_in_a_batch_with_other_tags(folder: Path, world: World) -> None:
    """Images with one, three, no and unboxable tags in one batch. transformers fills up with zeros, which win places
    among the queries: an image with few tags found other boxes in a batch than alone."""
    tags = [["house"], ["car", "Roof.", "sky"], [], ["red"], ["tree", "boat"]]
    together = stage(folder, unboxable="default")(Shard(0, tagged(world, *tags))).rows
    assert [row.status for row in together] == ["ok", "ok", "empty", "empty", "ok"]
    for index, row in enumerate(together):
        (alone,) = stage(folder, unboxable="default")(Shard(0, [tagged(world, *tags)[index]])).rows
        assert {region.label for region in row.regions} <= set(tags[index])
        assert [region.label for region in alone.regions] == [region.label for region in row.regions]
        for one, two in zip(alone.regions, row.regions, strict=True):
            assert np.abs(np.array(one.box) - two.box).max() < 1e-2
            assert abs(one.score - two.score) < 1e-5


def test_a_long_list_of_tags_loses_none(folder: Path, world: World) -> None:
    """The text of all tags is cut at 77 tokens, as transformers does; tags behind the cut must still be found. A tag
    that is longer than that itself is not looked for."""
    tags = ["house", *(f"thing {letter * 3}" for letter in string.ascii_lowercase), "x" * 80]
    (row,) = stage(folder, text_threshold=0.0, alternates=100)(Shard(0, tagged(world, tags))).rows
    assert row.status == "ok", row.reason
    found = {row.regions[0].label, *(other.label for other in row.regions[0].alternates)}
    assert found == set(tags[:-1])


def test_bfloat16_computes_boxes_in_float32(folder: Path, world: World) -> None:
    """Every part of the network must take the mix of both; a box in bfloat16 would move by pixels."""
    compute = ComputeSettings(threads=2, precision="bfloat16")
    (row,) = stage(folder, compute)(Shard(0, tagged(world, TAGS))).rows
    assert row.status == "ok" and len(row.regions) == OMDET_QUERIES, row.reason


def test_the_official_backbone_wants_timm(folder: Path, world: World, tmp_path: Path) -> None:
    """transformers' ImportError was taken for a broken file, and the remedy was to fetch the model again."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for name in ("backbone_config", "timm_kwargs"):
        config.pop(name, None)
    official = {
        "backbone": "swin_tiny_patch4_window7_224", "use_timm_backbone": True,
        "apply_layernorm_after_vision_backbone": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | official))
    if not installed("timm"):
        with pytest.raises(UserError, match=r"the package timm is not installed; pip install 'pad-pipeline\[omdet\]'"):
            stage(tmp_path)
        return
    channels = {"encoder_in_channels": [192, 384, 768]}
    with quiet():
        model = OmDetTurboForObjectDetection(OmDetTurboConfig(**config | official | channels))
        model.save_pretrained(tmp_path)
    (row,) = stage(tmp_path)(Shard(0, tagged(world, TAGS))).rows
    assert row.status == "ok", row.reason


def test_a_build_with_omdet_by_name(
    pad: Callable[..., SimpleNamespace], folder: Path, models_toml: Path, world: World, tmp_path: Path
) -> None:
    """From the TOML to verified shards: the chain, the fingerprints and `pad models check` must all know the kind."""
    text = models_toml.read_text().replace('model = "detector"', f'model = "{folder}"').replace("0.3", "0.0")
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    (tmp_path / "models.toml").write_text(text)
    checked = pad("models", "check", tmp_path / "models.toml")
    assert checked.code == 0 and "omdet-turbo, " in checked.out, checked.out
    build = ["build", "--images", world.images, "--models", tmp_path / "models.toml", "--engine", "local", "--limit", 2]
    done = pad(*build, "--out", tmp_path / "out")
    assert done.code == 0 and "failed" not in done.err.replace("0 failed", ""), done.err
    assert pad("verify", tmp_path / "out").code == 0
