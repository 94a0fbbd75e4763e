"""Tags -> boxes and masks by SAM 3: transformers' own numbers, one pass for an image, no duplicates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from transformers import (
    Sam3LiteTextModel,
    Sam3Model,
    Sam3Processor,
)

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.pretrained import quiet
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.run import Run
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.concept import ConceptSegmenter, ConceptSettings
from pad_pipeline.storage import Folder
from tests.conftest import record
from tests.hub_models import SAM3_EDGE, write_sam3

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)
ALL = {"threshold": 0.0, "nms_iou": 1.0, "nms_iou_across_labels": 1.0, "min_size": 0.0, "unboxable": ""}
TAGS = ["house", "car", "roof"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam3(tmp_path_factory.mktemp("sam3"))


def stage(folder: Path, compute: ComputeSettings = TWO, **changed: object) -> ConceptSegmenter:
    return ConceptSettings.model_validate({"model": str(folder), **ALL, **changed}).make(DECODING, compute)


def tagged(world: World, *tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in its])
        for index, its in enumerate(tags)
    ]


def mask_of(region: Region) -> np.ndarray:
    return coco_mask.decode({**region.rle, "counts": region.rle["counts"].encode()}).astype(bool)


def by_transformers(folder: Path, kind: Any, path: Path, threshold: float) -> dict[str, dict[str, np.ndarray]]:
    """Tag -> scores, boxes and masks, by transformers' processor, one tag in a call."""
    image = decode(path.read_bytes(), DECODING)[0]
    processor = Sam3Processor.from_pretrained(folder)
    found = {}
    with quiet(), torch.inference_mode():
        model = kind.from_pretrained(folder).eval()
        for tag in TAGS:
            inputs = processor(images=image, text=tag, return_tensors="pt")
            sizes = inputs.pop("original_sizes").tolist()
            (answer,) = processor.post_process_instance_segmentation(
                model(**inputs), threshold=threshold, target_sizes=sizes
            )
            found[tag] = {name: value.numpy() for name, value in answer.items()}
    return found


@pytest.mark.parametrize("kind", ["sam3", "sam3_video", "sam3_lite_text"])
def test_boxes_scores_and_masks_are_those_of_transformers(kind: str, world: World, tmp_path: Path) -> None:
    """Against the processor and model of transformers, each tag in a call of its own. Catches a presence score that is
    left out, boxes of the model's square, masks that are enlarged as logits, and features of another tag."""
    folder = write_sam3(tmp_path / kind, kind)
    shown = world.images / "scene-00001.png"
    wanted = by_transformers(folder, Sam3LiteTextModel if "lite" in kind else Sam3Model, shown, 0.0)
    row = tagged(world, [], TAGS)[1]
    (row,) = stage(folder, phrases_per_call=2)(Shard(0, [row])).rows
    assert row.status == "ok", row.reason
    assert row.width != row.height
    scores = np.concatenate([of_tag["scores"] for of_tag in wanted.values()])
    assert scores.std() > 1e-3, "equal scores everywhere would make this test blind"
    for prompt, tag in enumerate(TAGS):
        regions = [region for region in row.regions if region.label == tag]
        assert {region.prompt for region in regions} == {prompt}
        order = np.argsort(-wanted[tag]["scores"], kind="stable")
        edges = np.array([row.width, row.height] * 2)
        assert np.abs(np.array([region.score for region in regions]) - wanted[tag]["scores"][order]).max() < 1e-4
        boxes = wanted[tag]["boxes"][order].clip(0, edges)
        assert np.abs(np.array([region.box for region in regions]) - boxes).max() < 1e-4 * edges.max()
        masks = wanted[tag]["masks"][order].astype(bool)
        assert 0.02 < masks.mean() < 0.98
        different = np.mean([mask_of(region) != mask for region, mask in zip(regions, masks, strict=True)])
        assert different < 1e-4, "parts of pixels: only those at the threshold may fall to the other side"


def test_the_threshold_of_a_score_is_that_of_transformers(folder: Path, world: World) -> None:
    """Catches a limit for the box alone, without the probability that the image shows the tag."""
    shown = world.images / "scene-00000.png"
    scores = np.concatenate([of_tag["scores"] for of_tag in by_transformers(folder, Sam3Model, shown, 0.0).values()])
    threshold = float(np.sort(scores)[-10:-8].mean())
    wanted = by_transformers(folder, Sam3Model, shown, threshold)
    (row,) = stage(folder, threshold=threshold)(Shard(0, tagged(world, TAGS))).rows
    counts = {tag: sum(region.label == tag for region in row.regions) for tag in TAGS}
    assert counts == {tag: len(of_tag["scores"]) for tag, of_tag in wanted.items()}
    assert sum(counts.values()) == 9


def test_an_image_gives_the_same_alone_and_in_a_batch(folder: Path, world: World) -> None:
    """Images with one, three, no and unboxable tags in one batch."""
    tags = [["house"], ["car", "Roof.", "sky"], [], ["red"], ["tree", "boat"]]
    changed = {"unboxable": "default", "batch_size": 5}
    together = stage(folder, **changed)(Shard(0, tagged(world, *tags))).rows
    assert [row.status for row in together] == ["ok", "ok", "empty", "empty", "ok"]
    for index, row in enumerate(together):
        (alone,) = stage(folder, **changed)(Shard(0, [tagged(world, *tags)[index]])).rows
        assert {region.label for region in row.regions} <= set(tags[index])
        assert [region.label for region in alone.regions] == [region.label for region in row.regions]
        for one, two in zip(alone.regions, row.regions, strict=True):
            assert np.abs(np.array(one.box) - two.box).max() < 1e-4 * max(row.width, row.height)
            assert abs(one.score - two.score) < 1e-4
            assert np.mean(mask_of(one) != mask_of(two)) < 1e-3


def test_each_image_and_each_tag_is_encoded_once(folder: Path, world: World) -> None:
    """Catches an image encoder that runs for each tag: its 5 TFLOP would be paid ten times. And a shard whose bytes
    depend on the shards before it: a resumed run would differ from one that was never stopped."""
    made = stage(folder)
    images, texts, masks = [], [], []
    for name, calls in (("vision_encoder", images), ("text_encoder", texts)):
        getattr(made.model.model, name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
    made.model.decode_masks.register_forward_hook(lambda *_: masks.append(1))
    made(Shard(0, tagged(world, TAGS, ["roof", "tree"])))
    assert (len(images), len(texts), len(masks)) == (1, 4, 5)
    second = made(Shard(1, tagged(world, ["house", "car"]))).rows
    assert (len(images), len(texts)) == (2, 4)
    fresh = stage(folder)(Shard(1, tagged(world, ["house", "car"]))).rows
    assert [row.regions for row in second] == [row.regions for row in fresh]


def test_one_thing_that_two_tags_find_is_one_region_with_an_alternate(folder: Path, world: World) -> None:
    """SAM 3 finds a poodle for "poodle" and for "dog", with nearly the same box: such an image had each thing twice."""
    every = stage(folder)(Shard(0, tagged(world, TAGS))).rows[0].regions
    made = stage(folder, nms_iou=0.5, nms_iou_across_labels=0.5)
    masks: list[int] = []
    made.model.decode_masks.register_forward_hook(lambda *_: masks.append(1))
    (row,) = made(Shard(0, tagged(world, TAGS))).rows
    assert 0 < len(row.regions) < len(every)
    assert len(masks) == len({region.label for region in row.regions}), "masks only for tags with a region left"
    assert row.regions[0].score == max(region.score for region in every)
    assert any(region.alternates for region in row.regions)
    for region in row.regions:
        assert all(other.label != region.label and other.score <= region.score for other in region.alternates)
        assert mask_of(region).shape == (row.height, row.width)


def test_a_tag_that_is_too_long_is_not_cut(folder: Path, world: World) -> None:
    """Two long tags that are cut to the same 32 tokens would be one; here such a tag is not looked for."""
    long = "a very long name of a thing in a green field"
    (row,) = stage(folder)(Shard(0, tagged(world, ["house", long]))).rows
    assert row.status == "ok", row.reason
    assert {region.label for region in row.regions} == {"house"}


def test_lack_of_memory_means_one_tag_at_a_time_and_the_same_regions(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the network for boxes grows with the tags in a call: an image with many tags failed."""
    wanted = stage(folder)(Shard(0, tagged(world, TAGS, TAGS))).rows
    made = stage(folder)
    find = made.model.find

    def tight(maps: list[torch.Tensor], phrases: list[Any]) -> Any:
        if len(phrases) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return find(maps, phrases)

    monkeypatch.setattr(made.model, "find", tight)
    rows = made(Shard(0, tagged(world, TAGS, TAGS))).rows
    assert [row.status for row in rows] == ["ok", "ok"]
    for row, other in zip(rows, wanted, strict=True):
        assert len(row.regions) == len(other.regions)
        assert max(abs(a.score - b.score) for a, b in zip(row.regions, other.regions, strict=True)) < 1e-4


def test_bfloat16_keeps_boxes_and_scores_close(folder: Path, world: World) -> None:
    """Positions, scores and boxes stay float32: in bfloat16 a box would move by four pixels of a thousand. Every part
    of the network must take the mix of both."""
    compute = ComputeSettings(threads=2, precision="bfloat16")
    (exact,) = stage(folder, threshold=0)(Shard(0, tagged(world, ["house"]))).rows
    (row,) = stage(folder, compute, threshold=0)(Shard(0, tagged(world, ["house"]))).rows
    assert row.status == "ok", row.reason
    assert len(row.regions) == len(exact.regions)
    order = [sorted(regions, key=lambda region: region.box) for regions in (row.regions, exact.regions)]
    assert np.median([abs(one.score - two.score) for one, two in zip(*order, strict=True)]) < 0.05


def test_a_broken_folder_is_one_line(folder: Path, tmp_path: Path) -> None:
    """An image size that the model does not take failed every image, with a matrix product's words."""
    shutil.copytree(folder, tmp_path / "other")
    name = next(path for path in (tmp_path / "other").iterdir() if path.name.endswith("processor_config.json"))
    name.write_text(name.read_text().replace(str(SAM3_EDGE), "56"))
    with pytest.raises(UserError, match=r"makes images \(3, 56, 56\), and its model takes 112 pixels"):
        stage(tmp_path / "other")
    (tmp_path / "sam3.pt").write_bytes(b"1")
    with pytest.raises(UserError, match="this is a file, and should be a model folder of transformers"):
        stage(tmp_path / "sam3.pt")


def test_a_build_with_sam3_has_boxes_and_masks_in_its_shards(
    pad: Callable[..., SimpleNamespace], folder: Path, models_toml: Path, world: World, tmp_path: Path
) -> None:
    """From the TOML to verified shards: the section replaces detector and segmenter of a preset, and the chain, the
    fingerprints, run.json and `pad models check` all know it."""
    for name in ("tagger.safetensors", "tags.txt", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    parts = models_toml.read_text().split("\n[")
    kept = [part for part in parts if not part.startswith(("detector]", "segmenter]"))]
    toml = tmp_path / "models.toml"
    toml.write_text("\n[".join(kept) + f'\n[concepts]\nmodel = "{folder}"\nthreshold = 0.2\nunboxable = ""\n')
    checked = pad("models", "check", toml)
    assert checked.code == 0, checked.out
    assert "sam3, " in checked.out
    build = ["build", "--images", world.images, "--models", toml, "--engine", "local", "--limit", 3]
    done = pad(*build, "--out", tmp_path / "out")
    assert done.code == 0 and "failed" not in done.err.replace("0 failed", ""), done.err
    assert pad("verify", tmp_path / "out", "--deep").code == 0
    made = json.loads((tmp_path / "out/run.json").read_text())
    assert made["settings"]["detector"] == made["settings"]["segmenter"]
    assert len(made["fingerprints"]["concepts"]) == 64
    run = Run.read(Folder(tmp_path / "out"))
    official = made["settings"]["detector"] | {"model": "facebook/sam3"}
    run.settings.update({"detector": official, "segmenter": official})
    run.write(Folder(tmp_path / "out"))
    assert pad("export", "hub", tmp_path / "out", "--out", tmp_path / "hub").code == 0
    (line,) = (
        line for line in (tmp_path / "hub/README.md").read_text().splitlines() if line.startswith("| concepts |")
    )
    assert "| SAM License |" in line and "mask\\_threshold 0.5" in line
    shards = open_shards(tmp_path / "out")
    assert sum(len(shards.sample(name, row).meta["regions"]) for name, row in shards.rows()) > 0
