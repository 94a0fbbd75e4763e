"""`pad import coco`: every human annotation becomes its region, on the pixels that it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import World
from pad_pipeline.miniature.language import caption
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.shards.reader import open_shards
from tests.conftest import shared

Pad = Callable[..., Any]


@pytest.fixture(scope="module")
def common(models_toml: Path) -> list[object]:
    return ["--models", models_toml, "--view-size", 112]


def test_drawn_truth_comes_through_exactly(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """Scene -> COCO file -> shard: each mask pixel for pixel, each coverage that of the drawn mask."""
    out = tmp_path / "out"
    command = ["import", "coco", "--annotations", world.instances, "--images", world.images, "--captions", world.llava]
    assert pad(*command, *common, "--out", out).code == 0
    shards, view = open_shards(out), View(size=112)
    for index, (name, row) in enumerate(shards.rows()):
        sample, scene = shards.sample(name, row), draw_scene(3, index)
        assert sample.meta["caption"] == caption(scene)
        assert [region["label"] for region in sample.meta["regions"]] == [region.label for region in scene.regions]
        for found, truth, coverage in zip(sample.meta["regions"], scene.regions, sample.coverage, strict=True):
            assert (coco_mask.decode(found["rle"]) == truth.mask).all()
            assert tuple(found["box"]) == truth.box
            assert (view.coverage(truth.mask) == coverage).all()


def test_all_forms_of_segmentation(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Polygons, plain and compressed RLE, crowds, no segmentation at all; captions in the same file."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 3, "bbox": [2, 1, 8, 4], "iscrowd": 0}
    truth = np.zeros((10, 20), np.uint8)
    truth[1:5, 2:10] = 1
    packed = coco_mask.encode(np.asfortranarray(truth))
    runs = [21, *[4, 6] * 7, 4, 105]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [
            box | {"id": 1, "segmentation": [[2, 1, 10, 1, 10, 5, 2, 5]]},
            box | {"id": 2, "segmentation": {"size": [10, 20], "counts": packed["counts"].decode()}},
            box | {"id": 3, "segmentation": {"size": [10, 20], "counts": runs}, "iscrowd": 1},
            box | {"id": 4},
            {"id": 5, "image_id": 1, "caption": "a thing"},
            {"id": 6, "image_id": 1, "caption": "another wording"},
            {"id": 7, "image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    done = pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    assert done.code == 0, done.err
    assert "1 annotations of no listed image" in done.out
    shards = open_shards(out)
    ((name, row),) = shards.rows()
    meta = shards.sample(name, row).meta
    assert meta["caption"] == "a thing"
    assert [region["crowd"] for region in meta["regions"]] == [False, False, True, False]
    for region in meta["regions"]:
        assert (coco_mask.decode(region["rle"]) == truth).all()
        assert region["box"] == [2.0, 1.0, 10.0, 5.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": {"size": [10, 20], "counts": [5, 5]}}, "do not add up"),
        ({"segmentation": {"size": [10, 20], "counts": [-5, 205]}}, "whole numbers of 0 or more"),
        ({"segmentation": {"size": [10, 20], "counts": [0.5] * 400}}, "whole numbers of 0 or more"),
        ({"segmentation": {"size": [10, 20], "counts": "0oooooooo"}}, "no compressed RLE"),
        ({"segmentation": {"size": [10, 20], "counts": "P6"}}, "do not add up"),
        ({"segmentation": {"size": [20, 10], "counts": "P6"}}, "size of their RLE"),
        ({"segmentation": {"counts": "P6"}}, "RLE is not {size, counts}"),
        ({"segmentation": [[1, 2, 3]]}, "fewer than three points"),
        ({"segmentation": [["a", "b", "c", "d", "e", "f"]]}, "not lists of numbers"),
        ({"segmentation": [[None] * 6]}, "not lists of numbers"),
        ({"segmentation": [[float("inf"), 0, 0, 0, 10, 10]]}, "not lists of numbers"),
        ({"segmentation": [[0, 0, 3e7, 0, 3e7, 3e7]]}, "extends beyond the image"),
        ({"segmentation": None, "bbox": None}, "neither a segmentation nor a bbox"),
        ({"bbox": [float("nan"), 0, 1, 1]}, "not four numbers"),
        ({"bbox": "wide"}, "not four numbers"),
        ({"bbox": [0, 0, 1]}, "not four numbers"),
        ({"category_id": [3]}, "category is not in categories"),
        ({"category_id": 9}, "category is not in categories"),
    ],
)
def test_a_bad_annotation_costs_itself_and_not_its_image(
    pad: Pad, common: list[object], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    """Malformed RLE has crashed readers in C code; here it is left out, and the row or the counts name it."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "b.png")
    size = {"width": 20, "height": 10}
    good = {
        "image_id": 1,
        "category_id": 3,
        "bbox": [2, 1, 8, 4],
        "segmentation": [[2, 1, 10, 1, 10, 5, 2, 5]],
        "id": 1,
    }
    coco = {
        "images": [{"id": 1, "file_name": "a.png", **size}, {"id": 2, "file_name": "b.png", **size}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [good, good | {"image_id": 2, "id": 2} | change, good | {"image_id": 2, "id": 3}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    done = pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    assert done.code == 0, done.err
    rows = [row for _, row in open_shards(out).rows()]
    assert [(row["status"], row["regions"]) for row in rows] == [("ok", 1), ("ok", 1)]
    counted = " ".join(open_shards(out).run.counts)
    assert reason in rows[1]["reason"] + counted
    assert "annotation 2" in rows[1]["reason"] or "annotation 2 of image 2" in done.err


def test_annotations_of_another_size_fail_their_image(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Masks at the wrong place, because the picture was resized or turned after it was annotated."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    boxes = [{"id": 1, "image_id": image, "category_id": 3, "bbox": [2, 1, 8, 4]} for image in (1, 2, 3)]
    sizes = [{"width": 10, "height": 20}, {"width": -1, "height": 0}, {"width": "20", "height": 10.0}]
    images = [{"id": number, "file_name": "a.png"} | size for number, size in enumerate(sizes, 1)]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "thing"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    rows = [row for _, row in open_shards(out).rows()]
    assert [row["status"] for row in rows] == ["failed", "ok", "ok"]
    assert "for an image of 10 x 20" in rows[0]["reason"]


def test_a_box_beyond_the_image_is_clipped(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """A bbox of 1e300 made pycocotools take all memory; clipped, it is the image's edge."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [-5, 4, 1e300, 1e300]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    done = pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    assert done.code == 0, done.err
    shards = open_shards(out)
    (region,) = shards.sample(*next(shards.rows())).meta["regions"]
    assert region["box"] == [0, 4, 20, 10]
    assert coco_mask.area(region["rle"]) == 20 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "the image id 1 stands there more than once"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, "every entry of images should be"),
        ({"images": "a.png"}, "it has no list 'images'"),
        ({"categories": [{"id": 1, "name": None}]}, "categories should be a list of {id, name}"),
        ({"images": []}, "there is no image in it"),
    ],
)
def test_a_malformed_file_is_refused(
    pad: Pad, common: list[object], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [], "annotations": []} | change
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common]
    done = pad(*command, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert "coco.json" in done.err


def test_odd_captions_and_names_are_not_made_up(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """null became the caption "None", to be trained on; a file name that is no text became a path."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "caption": None}, {"id": 2, "file_name": None}],
        "categories": [],
        "annotations": [{"id": 1, "image_id": 1, "caption": [1]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    done = pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    assert done.code == 0, done.err
    assert "1 captions that can't be read" in done.out
    shards = open_shards(out)
    (_, first), (_, second) = shards.rows()
    assert shards.sample("pad-000000", first).meta["caption"] == ""
    assert "file_name should be one path" in second["reason"]


def test_photographs(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """The 51 COCO photographs: 546 annotations, 7 of them crowds, each a region with the annotated area."""
    annotations = shared("photos/instances.json")
    out = tmp_path / "out"
    command = ["import", "coco", "--annotations", annotations, "--images", annotations.parent / "images"]
    assert pad(*command, *common, "--out", out).code == 0
    shards, regions, crowds = open_shards(out), 0, 0
    areas = []
    for name, row in shards.rows():
        assert row["status"] == "ok"
        for region in shards.sample(name, row).meta["regions"]:
            regions, crowds = regions + 1, crowds + region["crowd"]
            areas.append(int(coco_mask.area(region["rle"])))
    assert (row["status"], regions, crowds) == ("ok", 546, 7)
    truth = json.loads(annotations.read_text())["annotations"]
    assert abs(sum(areas) / sum(entry["area"] for entry in truth) - 1) < 0.01


def test_annotations_that_the_stage_leaves_out_are_reported(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Catches masks that do not fit their image, all of which were lost with exit code 0 and without a word."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    rle = {"size": [20, 10], "counts": [0, 200]}
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "segmentation": rle}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    done = pad("import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common, "--out", out)
    line = "1 images of which annotations are left out (the first: a.png: 1 of 1 annotations are left out: annotation 7"
    assert done.code == 0 and line in done.out
    assert pad("verify", out).code == 0
    assert "annotation 7" in json.loads(pad("stats", out, "--json").out)["annotations_left_out"][0]
    assert "images of which annotations are left out" in " ".join(pad("stats", out).out.split())
    merged = tmp_path / "merged"
    assert pad("merge", out, "--out", merged).code == 0
    ((_, row),) = open_shards(merged).rows()
    assert "annotation 7" in row["reason"]
