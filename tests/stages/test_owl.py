"""Tags -> boxes by OWLv2 and OWL-ViT: transformers' own numbers, exact labels, batches that change nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTokenizer,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    OwlViTForObjectDetection,
    OwlViTProcessor,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.owl import OwlDetector
from tests.conftest import record
from tests.hub_models import write_owl

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)
ALL = {"box_threshold": 0.0, "nms_iou": 1.0, "nms_iou_across_labels": 1.0, "min_size": 0.0, "unboxable": ""}


@pytest.fixture(scope="module", params=["owlv2", "owlvit"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_owl(tmp_path_factory.mktemp(request.param), request.param)


def stage(folder: Path, **changed: object) -> OwlDetector:
    made = DetectorSettings.model_validate({"model": str(folder), **ALL, **changed}).make(DECODING, TWO)
    assert isinstance(made, OwlDetector)
    return made


def tagged(world: World, *tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in its])
        for index, its in enumerate(tags)
    ]


def test_boxes_are_those_of_transformers_called_directly(folder: Path, world: World) -> None:
    """By folder name alone, against transformers' processor, model and post-processing on one image: the same box,
    label and score for every query, boxes to 1e-3 pixels and scores to 1e-5. Boxes taken as parts of the image, and
    not of OWLv2's filled-up square, would be off by tens of pixels here."""
    v2 = "owlv2" in folder.name
    tags = ["house", "car", "roof"]
    image = decode((world.images / "scene-00001.png").read_bytes(), DECODING)[0]
    assert image.width != image.height
    kinds = (Owlv2Processor, Owlv2ImageProcessorPil) if v2 else (OwlViTProcessor, OwlViTImageProcessorPil)
    processor = kinds[0](kinds[1].from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))
    texts = [[f"a photo of a {tag}" for tag in tags]]
    inputs = processor(text=texts, images=image, return_tensors="pt")
    model = (Owlv2ForObjectDetection if v2 else OwlViTForObjectDetection).from_pretrained(folder).eval()
    with torch.inference_mode():
        (wanted,) = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=0.0, target_sizes=[(image.height, image.width)], text_labels=[tags]
        )
    order = np.argsort(-wanted["scores"].numpy(), kind="stable")
    edges = np.array([image.width, image.height] * 2)
    boxes = wanted["boxes"].numpy()[order].clip(0, edges)

    row = tagged(world, [], tags)[1]
    (row,) = stage(folder)(Shard(0, [row])).rows
    assert row.status == "ok", row.reason
    assert len({region.label for region in row.regions}) > 1, "one label everywhere would make this test blind"
    assert [region.label for region in row.regions] == [wanted["text_labels"][index] for index in order]
    assert np.abs(np.array([region.box for region in row.regions]) - boxes).max() < 1e-3
    assert np.abs(np.array([region.score for region in row.regions]) - wanted["scores"].numpy()[order]).max() < 1e-5


def test_an_image_gives_the_same_alone_and_in_a_batch_with_other_tags(folder: Path, world: World) -> None:
    """Images with one, three, no and unboxable tags in one batch: filled-up queries must not be found."""
    tags = [["house"], ["car", "Roof.", "sky"], [], ["red"], ["tree", "boat"]]
    together = stage(folder, unboxable="default")(Shard(0, tagged(world, *tags))).rows
    assert [row.status for row in together] == ["ok", "ok", "empty", "empty", "ok"]
    for index, row in enumerate(together):
        (alone,) = stage(folder, unboxable="default")(Shard(0, [tagged(world, *tags)[index]])).rows
        assert {region.label for region in row.regions} <= set(tags[index])
        assert [region.label for region in alone.regions] == [region.label for region in row.regions]
        for one, two in zip(alone.regions, row.regions, strict=True):
            assert np.abs(np.array(one.box) - two.box).max() < 1e-3
            assert abs(one.score - two.score) < 1e-5


def test_a_shard_gives_the_same_bytes_whatever_came_before_it(folder: Path, world: World) -> None:
    """Texts that were kept from an earlier shard were read in other company: a resumed run would differ in last
    bits from one that was never stopped."""
    again = stage(folder)
    again(Shard(0, tagged(world, ["car", "cloud", "house"], ["roof"])))
    tags = [["house", "roof"], ["car", "tree"]]
    first, second = (run(Shard(1, tagged(world, *tags))).rows for run in (again, stage(folder)))
    assert [[(r.label, r.box, r.score) for r in row.regions] for row in first] == [
        [(r.label, r.box, r.score) for r in row.regions] for row in second
    ]


def test_other_good_labels_are_alternates_and_a_tag_that_is_too_long_is_not_cut(folder: Path, world: World) -> None:
    """transformers cuts a text at its 16 tokens, and two long tags become one; here such a tag is not looked for."""
    long = "a very long name of a thing"
    row = tagged(world, ["house", "car", long])[0]
    (row,) = stage(folder, text_threshold=0.0)(Shard(0, [row])).rows
    assert row.status == "ok", row.reason
    assert all(
        {region.label, *(other.label for other in region.alternates)} == {"house", "car"} for region in row.regions
    )
    assert all(region.alternates[0].score <= region.score for region in row.regions)


def test_a_broken_folder_is_one_line(folder: Path, tmp_path: Path) -> None:
    """An image size that the model does not take failed every image, with a matrix product's words."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 64, "width": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"makes images \(3, 64, 64\), and its model takes 96 pixels"):
        stage(tmp_path)


def test_owlv2_without_scipy_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' ImportError was taken for a broken file, and the remedy was to fetch the model again."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    if "owlv2" in folder.name:
        with pytest.raises(UserError, match=r"the package scipy is not installed; pip install 'pad-pipeline\[owl\]'"):
            stage(folder)
    else:
        assert stage(folder)


def test_a_build_with_owl_by_name(
    pad: Callable[..., SimpleNamespace], folder: Path, models_toml: Path, world: World, tmp_path: Path
) -> None:
    """From the TOML to verified shards: the chain, the fingerprints and `pad models check` must all know the kind."""
    text = models_toml.read_text().replace('model = "detector"', f'model = "{folder}"').replace("0.3", "0.0")
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    (tmp_path / "models.toml").write_text(text)
    checked = pad("models", "check", tmp_path / "models.toml")
    assert checked.code == 0, checked.out
    assert ("owlv2, " if "owlv2" in folder.name else "owlvit, ") in checked.out
    build = ["build", "--images", world.images, "--models", tmp_path / "models.toml", "--engine", "local", "--limit", 3]
    done = pad(*build, "--out", tmp_path / "out")
    assert done.code == 0 and "failed" not in done.err.replace("0 failed", ""), done.err
    assert pad("verify", tmp_path / "out", "--deep").code == 0
