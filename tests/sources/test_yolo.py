"""YOLO data sets as ultralytics and Roboflow write them: boxes and polygons, in fractions of the image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.yolo import YoloSource

POLYGON, BOX = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "1 0.5 0.5 0.2 0.4"


def write(folder: Path, labels: dict[str, str], data: str, size: tuple[int, int] = (40, 20)) -> Path:
    """Images, each with a label file, by the path of the image; and `data.yaml`."""
    for image, text in labels.items():
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        label = folder / image.replace("images/", "labels/").replace(".png", ".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        if text:
            label.write_text(text)
    (folder / "data.yaml").write_text(data)
    return folder


@pytest.mark.parametrize(
    ("images", "data"),
    [
        ("images/train", "path: .\ntrain: images/train\nnames: [cat, fire_hydrant]\n"),
        ("images/train", "path: ../datasets/NAME\ntrain: images/train\nnames:\n  0: cat\n  1: fire_hydrant\n"),
        ("train/images", "train: ../train/images\nnc: 2\nnames: ['cat', 'fire_hydrant']\n"),
        ("train/images", "train: train.txt\nnames: [cat, fire_hydrant]\n"),
        ("images/train", "val: [images/train]\nnames: [cat, fire_hydrant]\n"),
    ],
    ids=["ultralytics", "path elsewhere", "roboflow", "list of images", "list of folders"],
)
def test_every_layout_is_read(tmp_path: Path, images: str, data: str) -> None:
    """Catches a data set whose folders are named relative to another place than the tool that wrote it thinks."""
    folder = write(tmp_path / "set", {f"{images}/a.png": f"{POLYGON}\n{BOX}\n", f"{images}/b.png": ""}, data)
    (folder / "train.txt").write_text(f"{images}/a.png\n./{images}/b.png\n")
    source = YoloSource(folder)
    first, second = source
    assert [(one["label"], one["box"], one["segmentation"]) for one in first.annotations] == [
        ("cat", None, [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5, 0.1, 0.5]]),
        ("fire hydrant", [0.4, 0.3, 0.2, 0.4], None),
    ]
    assert (Path(source.root) / first.source).samefile(folder / images / "a.png")
    assert not second.annotations
    assert source.counts == {"images without a label file, which count as empty": 1}


def test_a_bad_line_costs_itself_and_is_named(tmp_path: Path) -> None:
    """Catches a data set that is refused, or an image that is lost, for one line."""
    lines = [
        "9 0.5 0.5 0.1 0.1",
        "0 0.5 0.5",
        "x 1 2 3 4",
        "0 nan 0.5 0.1 0.1",
        "0 0.5 0.5 -0.1 0.1",
        BOX + " 0.9",
        BOX,
    ]
    data = "train: images\nnames: [cat, dog]\n"
    source = YoloSource(write(tmp_path, {"images/a.png": "\n".join(lines)}, data))
    (planned,) = source
    assert [one.get("score") for one in planned.annotations] == [0.9, None]
    assert source.counts.total() == 5
    assert set(source.counts.examples.values()) == {f"labels/a.txt:{number}" for number in range(1, 6)}


def test_boxes_and_polygons_become_masks(pad: Callable[..., Any], models_toml: Path, tmp_path: Path) -> None:
    """Fractions times the upright size are pixels: exact masks, for a command from end to end."""
    data = "train: images\nval: images2\nnames: [cat, dog]\n"
    write(tmp_path / "set", {"images/a.png": f"{POLYGON}\n{BOX}\n", "images2/a.png": BOX}, data)
    command = ["import", "yolo", "--annotations", tmp_path / "set", "--models", models_toml, "--view-size", 112]
    done = pad(*command, "--splits", "train", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    shards = open_shards(tmp_path / "out")
    assert shards.run.kind == "import-yolo"
    ((name, row),) = shards.rows()
    cat, dog = shards.sample(name, row).meta["regions"]
    assert (cat["label"], cat["box"], dog["label"], dog["box"]) == ("cat", [4, 2, 20, 10], "dog", [16, 6, 24, 14])
    for region, (x0, y0, x1, y1) in ((cat, (4, 2, 20, 10)), (dog, (16, 6, 24, 14))):
        mask = coco_mask.decode(region["rle"])
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ("[1, 2]", "should hold train, val and names"),
        ("a: [", "not valid YAML"),
        ("train: images\n", "its names should be"),
        ("train: nowhere\nnames: [cat]\n", "the folder that it names under 'train' is not there"),
        ("names: [cat]\n", "it names no train or val"),
        ("train: !!python/object/apply:os.system ['true']\nnames: [a]\n", "not valid YAML"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, data: str, rule: str) -> None:
    """One line; and YAML that would run code is only text that can't be read."""
    (tmp_path / "data.yaml").write_text(data)
    with pytest.raises(UserError, match=rule) as error:
        YoloSource(tmp_path)
    assert error.value.field == "annotations"
    with pytest.raises(UserError, match="there is no such file"):
        YoloSource(tmp_path / "none")


def test_json_can_hold_what_is_planned(tmp_path: Path) -> None:
    source = YoloSource(write(tmp_path, {"images/a.png": BOX}, "train: images\nnames: [cat, dog]\n"))
    assert json.dumps([one.annotations for one in source])


def test_folders_elsewhere_are_named(tmp_path: Path) -> None:
    """Catches a data.yaml of somebody else that leads to other images, and nobody is told."""
    write(tmp_path / "other", {"images/a.png": BOX}, "")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data.yaml").write_text(f"train: {tmp_path}/other/images\nnames: [cat, dog]\n")
    source = YoloSource(tmp_path / "set")
    assert [one.source for one in source] == ["a.png"]
    assert source.counts.examples == {
        "folders outside the folder of data.yaml, whose images are read": f"{tmp_path}/other/images"
    }


def test_a_list_that_leads_out_of_the_data_set_is_not_followed(tmp_path: Path) -> None:
    """Catches images and labels that are read outside the data set, and a list that is no text."""
    write(tmp_path / "other", {"images/a.png": BOX}, "")
    folder = write(tmp_path / "set", {"images/b.png": BOX}, "train: train.txt\nnames: [cat, dog]\n")
    (folder / "train.txt").write_text("../other/images/a.png\nimages/b.png\n")
    out, own = YoloSource(folder)
    assert out.problem and not out.annotations and own.annotations and not own.problem
    (folder / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid UTF-8"):
        list(YoloSource(folder))
