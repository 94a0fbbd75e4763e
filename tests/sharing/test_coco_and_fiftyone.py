"""Exports as COCO and FiftyOne open in the tools they are for, and come back whole, with what people changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from tests.sharing.conftest import Pad
from tests.sharing.regions import found

LAYOUTS = {"coco": ("instances.json", "images"), "fiftyone": ("labels.json", "data")}
"""Kind of export -> its annotations, its images."""


def test_coco_and_back_gives_the_same_regions(built: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Labels, boxes to the last digit, scores, alternates, masks, captions, dialogues. Catches a box that loses digits
    as x + width, and a swap of x and y in RLE."""
    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    command = ["import", "coco", "--annotations", tmp_path / "coco/instances.json"]
    command += ["--images", tmp_path / "coco/images", "--models", models_toml, "--view-size", 112, "--shard-size", 4]
    done = pad(*command, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    before = found(built)
    assert any(region["alternates"] for _, _, regions in before.values() for region in regions)
    assert found(tmp_path / "back") == before


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_people_change_in_an_export_comes_back(
    kind: str, built: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """Box and score were taken from `pad`, and an edit of `bbox` or `score` had no effect at all. One edit of each to
    the regions of one image; a mask that was drawn anew with the box around it; numbers that a tool rounded are no
    edit. Whatever is as it was exported comes back whole, with the box that was detected."""
    from pycocotools import mask as coco_mask

    annotations, images = LAYOUTS[kind]
    assert pad("export", kind, built, "--out", tmp_path / "out").code == 0
    path = tmp_path / "out" / annotations
    content = json.loads(path.read_text())
    image = next(
        image for image in content["images"] if sum(a["image_id"] == image["id"] for a in content["annotations"]) > 4
    )
    moved, scored, drawn, rounded, without = [a for a in content["annotations"] if a["image_id"] == image["id"]][:5]
    moved["bbox"] = [3.5, 4.25, 20.0, 11.5]
    scored["score"] = 0.125
    mask = np.zeros(drawn["segmentation"]["size"], np.uint8, order="F")
    mask[2:9, 5:25] = 1
    drawn["segmentation"] = coco_mask.encode(mask) | {"counts": coco_mask.encode(mask)["counts"].decode()}
    drawn["bbox"] = [5, 2, 20, 7]
    rounded["bbox"] = [round(edge, 2) for edge in rounded["bbox"]]
    del without["bbox"], without["score"]
    path.write_text(json.dumps(content))
    command = ["import", "coco", "--annotations", path, "--images", tmp_path / "out" / images]
    done = pad(*command, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    wanted = copy.deepcopy(found(built))
    regions = wanted[image["pad"]["id"]][2]
    regions[0]["box"] = [3.5, 4.25, 23.5, 15.75]
    regions[1]["score"] = 0.125
    regions[2]["box"], regions[2]["rle"] = [5, 2, 25, 9], drawn["segmentation"]
    assert found(tmp_path / "back") == wanted


def test_pycocotools_evaluates_the_export(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Boxes and masks, evaluated against themselves, are perfect: ids, categories and RLE go together."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    truth = COCO(tmp_path / "coco/instances.json")
    assert {path.name for path in (tmp_path / "coco/images").iterdir()} == {
        image["file_name"] for image in truth.dataset["images"]
    }
    for annotation in truth.dataset["annotations"]:
        assert annotation["area"] == truth.annToMask(annotation).sum()
    for kind in ("segm", "bbox"):
        scored = COCOeval(truth, truth.loadRes(copy.deepcopy(truth.dataset["annotations"])), kind)
        scored.params.maxDets = [1, 100, 1000]
        scored.evaluate()
        recalls = [image["dtMatches"][0].astype(bool).mean() for image in scored.evalImgs if image and image["dtIds"]]
        assert np.mean(recalls) > 0.99  # two regions with one mask match each other


def test_fiftyone_finds_its_layout(built: Path, pad: Pad, tmp_path: Path) -> None:
    """data/ and labels.json, as its COCODetectionDataset expects them; the command to open it is printed."""
    done = pad("export", "fiftyone", built, "--out", tmp_path / "out")
    assert done.code == 0
    assert "fo.types.COCODetectionDataset" in done.out
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    assert {image["file_name"] for image in labels["images"]} == {
        path.name for path in (tmp_path / "out/data").iterdir()
    }
    assert "10 images" in done.out and "1 failed" in done.out


def test_fiftyone_shows_the_whole_mask(built: Path, pad: Pad, tmp_path: Path) -> None:
    """FiftyOne keeps of a mask what lies in its bbox, rounded; detected boxes there cut most masks (seen in 1.22), as
    they would here. They stand under `pad`."""
    from pycocotools import mask as coco_mask

    assert pad("export", "fiftyone", built, "--out", tmp_path / "out").code == 0
    annotations = json.loads((tmp_path / "out/labels.json").read_text())["annotations"]
    detected = [region["box"] for _, _, regions in found(built).values() for region in regions]
    assert [annotation["pad"]["box"] for annotation in annotations] == detected

    def kept(mask: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> int:
        return int(mask[round(y0) : round(y1), round(x0) : round(x1)].sum())

    cut = 0
    for annotation, box in zip(annotations, detected, strict=True):
        x, y, width, height = annotation["bbox"]
        mask = coco_mask.decode(annotation["segmentation"])
        assert kept(mask, x, y, x + width, y + height) == mask.sum() == annotation["area"]
        cut += kept(mask, *box) < mask.sum()
    assert cut > len(annotations) / 2
