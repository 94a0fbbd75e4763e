"""COCO files as tools write them: VIA, Label Studio, Roboflow, LVIS; and captions from another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.coco import CocoSource
from tests.sources.small_sources import png

BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "train/0001.png", "val/0001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    return tmp_path


def source(folder: Path, images: list[Any], annotations: list[Any], **parts: Any) -> CocoSource:
    captions = parts.pop("captions", None)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]} | parts
    (folder / "coco.json").write_text(json.dumps(coco))
    return CocoSource(folder / "coco.json", folder, captions)


def only(source: CocoSource) -> Planned:
    (planned,) = source
    return planned


@pytest.mark.parametrize("unknown", [{"width": -1, "height": -1}, {"width": 0, "height": 0}, {"width": None}, {}])
def test_sizes_that_are_not_positive_are_unknown(folder: Path, unknown: dict[str, Any]) -> None:
    """Catches VIA's -1, with which every image would have another size than its annotations."""
    planned = only(source(folder, [{"id": 1, "file_name": "a.png"} | unknown], [BOX | {"id": 1}]))
    assert (planned.annotations[0]["width"], planned.annotations[0]["height"]) == (None, None)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([1, 1, 5, 1, 5, 5], [[1, 1, 5, 1, 5, 5]]),
        ([[]], None),
        ([], None),
        ("", None),
        ([[], [1, 1, 5, 1, 5, 5]], [[1, 1, 5, 1, 5, 5]]),
    ],
)
def test_an_empty_segmentation_is_none_and_a_flat_list_one_polygon(folder: Path, written: Any, read: Any) -> None:
    """Catches VIA's flat lists, and `[[]]` for "no mask", which cost the whole image."""
    planned = only(source(folder, [{"id": 1, "file_name": "a.png"}], [BOX | {"id": 1, "segmentation": written}]))
    assert planned.annotations[0]["segmentation"] == read


@pytest.mark.parametrize(("written", "crowd"), [("1", True), (True, True), (1.0, True), ("0", False), (None, False)])
def test_a_crowd_is_recognized_in_every_type(folder: Path, written: Any, crowd: bool) -> None:
    planned = only(source(folder, [{"id": 1, "file_name": "a.png"}], [BOX | {"id": 1, "iscrowd": written}]))
    assert planned.annotations[0]["crowd"] is crowd


def test_a_category_id_may_not_stand_for_two_names(folder: Path) -> None:
    """Catches persons that become dogs. The same name twice, as VIA writes it, is harmless."""
    twice = [{"id": 3, "name": "thing"}, {"id": "3", "name": "thing"}]
    assert only(source(folder, [{"id": 1, "file_name": "a.png"}], [BOX], categories=twice)).annotations
    clash = [{"id": 3, "name": "person"}, {"id": 3.0, "name": "dog"}]
    with pytest.raises(UserError, match="the category id 3 stands for 'person' and for 'dog'"):
        source(folder, [{"id": 1, "file_name": "a.png"}], [BOX], categories=clash)


def test_names_of_lvis_are_words_and_its_urls_are_paths(folder: Path) -> None:
    """Catches labels with underscores, whose embedding is that of word pieces, and images without a file_name."""
    names = [{"id": 3, "name": "aerosol_can"}, {"id": 4, "name": "car_(automobile)"}, {"id": 5, "name": "a_b c"}]
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/val/0001.png"},
        {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/a.png"},
    ]
    boxes = [BOX | {"id": number, "category_id": number} for number in (3, 4, 5)]
    first, second = source(folder, images, boxes, categories=names)
    assert [one["label"] for one in first.annotations] == ["aerosol can", "car (automobile)", "a_b c"]
    assert (first.source, second.source) == ("val/0001.png", "a.png")


def test_most_annotations_of_no_image_are_an_error(folder: Path) -> None:
    """Catches human work that is lost with exit code 0."""
    images = [{"id": 1, "file_name": "a.png"}]
    with pytest.raises(UserError, match="2 of its 3 annotations belong to no listed image; the first is annotation 7"):
        source(folder, images, [BOX, BOX | {"id": 7, "image_id": "x"}, BOX | {"image_id": 9}])
    left = source(folder, images, [BOX, BOX | {"id": 7, "image_id": "x"}])
    assert left.counts == {"annotations of no listed image": 1}


def test_a_panoptic_file_has_its_masks_in_png_files(folder: Path) -> None:
    """Catches images without regions for a panoptic file, and ids of which one channel is lost."""
    ids = np.zeros((4, 6), np.int64)
    ids[:2, :3], ids[2:, 3:] = 3226956, 7
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    segments = [
        {"id": 3226956, "category_id": 3, "iscrowd": 1}, {"id": 7, "category_id": 3}, {"id": 8, "category_id": 3},
        {"id": 7, "category_id": 9},
    ]  # fmt: skip
    entries = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    entries += [{"image_id": 2, "file_name": "missing.png", "segments_info": segments}]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "val/0001.png"}]
    with pytest.raises(UserError, match=r"masks = .*: it is a panoptic file, and the folder of its PNG files"):
        source(folder, images, entries)
    (folder / "coco").mkdir()
    Image.fromarray(pixels).save(folder / "coco/a.png")
    read = source(folder, images, entries)
    first, second = read
    masks = [coco_mask.decode(one["segmentation"]) for one in first.annotations]
    assert [(mask == truth).all() for mask, truth in zip(masks, (ids == 3226956, ids == 7), strict=True)] == [True] * 2
    assert [one["crowd"] for one in first.annotations] == [True, False]
    assert not second.annotations
    assert sorted(read.counts.examples.values()) == [
        "annotation 7 of image '1'", "annotation 8 of image '1'", "image 2, with 4 segments",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["llava.json", "list.jsonl", "list.csv"])
def test_captions_are_joined_by_path(folder: Path, form: str) -> None:
    """Catches val/0001 with the caption of train/0001. A bare name counts only where it is unique on both sides."""
    images = [{"id": 1, "file_name": "train/0001.png"}, {"id": 2, "file_name": "val\\0001.png"}]
    images += [{"id": 3, "file_name": "a.png"}]
    said = {"train/0001.png": "light", f"{folder}/val/0001.png": "dark", "elsewhere/a.png": "by name"}
    rows = [{"image": image, "caption": caption} for image, caption in said.items()]
    texts = {
        "llava.json": json.dumps(rows),
        "list.jsonl": "\n".join(map(json.dumps, rows)),
        "list.csv": "image,caption\n" + "\n".join(",".join(one.values()) for one in rows),
    }
    (folder / form).write_text(texts[form])
    planned = list(source(folder, images, [BOX], captions=folder / form))
    assert [one.caption for one in planned] == ["light", "dark", "by name"]
    (folder / "0001.json").write_text(json.dumps([{"image": "0001.png", "caption": "of which?"}]))
    with pytest.raises(UserError, match=r"captions = .*: none of its 1 images is one of"):
        source(folder, images, [BOX], captions=folder / "0001.json")


def test_a_caption_of_an_annotation_does_not_cost_its_region(folder: Path) -> None:
    """Catches referring expressions, whose boxes were lost and whose phrases became captions of the image."""
    read = source(folder, [{"id": 1, "file_name": "a.png"}], [BOX | {"id": 1, "caption": "a striped tabby"}])
    planned = only(read)
    assert (len(planned.annotations), planned.caption) == (1, "")
    assert read.counts == {"captions of single annotations, which are not used": 1}


def test_an_rle_of_another_size_is_seen_before_the_import(folder: Path) -> None:
    """Catches height and width in the wrong order, with which all annotations are lost."""
    rle = {"size": [64, 48], "counts": [64 * 48]}
    images = [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]
    read = source(folder, images, [BOX | {"id": 1, "segmentation": rle}])
    assert not only(read).annotations
    assert [*read.counts] == [
        "annotations left out, because the size of their RLE is not the height and the width of the image"
    ]


def test_results_of_captioners_are_joined_by_id(folder: Path) -> None:
    """Catches `[{"image_id": 1, "caption": ...}]`, whose captions were lost in silence."""
    (folder / "results.json").write_text(json.dumps([{"image_id": 1, "caption": "one"}]))
    assert (
        only(source(folder, [{"id": 1, "file_name": "a.png"}], [BOX], captions=folder / "results.json")).caption
        == "one"
    )
    (folder / "results.json").write_text(json.dumps([{"image_id": 9, "caption": "one"}]))
    with pytest.raises(UserError, match="none of its 1 captions belongs to a listed image"):
        source(folder, [{"id": 1, "file_name": "a.png"}], [BOX], captions=folder / "results.json")


def test_captions_with_ids_of_their_own_are_joined_by_path(folder: Path) -> None:
    """Catches another image's caption, where the two files count their images differently."""
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "train/0001.png"}]
    captions = {
        "images": [{"id": 77, "file_name": "./a.png"}, {"id": 1, "file_name": "train/0001.png"}],
        "annotations": [
            {"image_id": 77, "caption": ""}, {"image_id": 77, "caption": "of a"}, {"image_id": 1, "caption": "of 1"},
        ],
    }  # fmt: skip
    (folder / "captions.json").write_text(json.dumps(captions))
    read = source(folder, images, [BOX], captions=folder / "captions.json")
    assert [one.caption for one in read] == ["of a", "of 1"]


def test_captions_that_find_no_image_are_counted(folder: Path) -> None:
    (folder / "l.jsonl").write_text(
        '{"image": "a.png", "caption": "a"}\n{"caption": "none"}\n{"image": "x.png", "caption": "x"}\n'
    )
    read = source(folder, [{"id": 1, "file_name": "a.png"}], [BOX], captions=folder / "l.jsonl")
    assert only(read).caption == "a"
    assert read.counts == {"captions of no listed image": 1, "rows without an image": 1}


@pytest.mark.parametrize(
    "entry",
    [{"captions": ["x", "y"]}, {"caption": ["x"]}, {"text": "x"}, {"conversations": [{"from": "gpt", "value": "x"}]}],
)
def test_an_image_entry_has_its_texts_by_the_rule_of_all_lists(folder: Path, entry: dict[str, Any]) -> None:
    """Catches captions in a COCO file that a JSON with the same names would give."""
    assert only(source(folder, [{"id": 1, "path": "a.png"} | entry], [BOX])).caption == "x"
    assert only(source(folder, [{"id": 1, "file_name": "a.png"} | entry], [BOX])).caption == "x"


def test_numbers_without_bounds_are_a_bad_annotation(folder: Path) -> None:
    """Catches a traceback for an integer that no float holds."""
    read = source(folder, [{"id": 1, "file_name": "a.png"}], [BOX | {"bbox": [10**400, 1, 2, 3]}])
    assert not only(read).annotations and read.counts.total() == 1


def test_urls_and_dates_of_coco_are_no_captions(folder: Path) -> None:
    """Catches a strict import of COCO's own files that stops, because a `coco_url` may be a caption."""
    facts = {"coco_url": "http://x/a.png", "flickr_url": "http://y", "date_captured": "2013", "license": 1}
    read = source(folder, [{"id": 1, "file_name": "a.png"} | facts], [BOX])
    assert only(read).caption == "" and not read.counts.other_texts
