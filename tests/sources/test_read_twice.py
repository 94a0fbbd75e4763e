"""A source says the same each time that it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pad_pipeline.sources.base import Source
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.labelme import LabelmeSource
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.yolo import YoloSource
from tests.sources.small_sources import png, write_list, write_tar


def coco(folder: Path) -> Source:
    (folder / "a.png").write_bytes(png())
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}
    segment = {"id": 1, "category_id": 3, "iscrowd": 0}
    panoptic = {"image_id": 1, "file_name": "gone.png", "segments_info": [segment]}
    facts = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 3, "name": "thing"}]}
    orphan, crossed = box | {"id": 2, "image_id": 9}, box | {"id": 3, "bbox": [1, 1, -5, 5]}
    annotations = [box, box | {"id": 4}, box | {"id": 5}, orphan, crossed, panoptic]
    (folder / "coco.json").write_text(json.dumps(facts | {"annotations": annotations}))
    (folder / "coco").mkdir()
    return CocoSource(folder / "coco.json", folder)


def yolo(folder: Path) -> Source:
    for name in ("images/a.png", "images/b.png", "images/notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png())
    (folder / "labels").mkdir()
    (folder / "labels/a.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("train: images\nval: gone\nnames: [cat]\n")
    return YoloSource(folder)


def labelme(folder: Path) -> Source:
    (folder / "a.png").write_bytes(png())
    facts = {"imagePath": "a.png", "shapes": [{"label": "x", "points": [], "shape_type": "polygon"}]}
    (folder / "a.json").write_text(json.dumps(facts))
    (folder / "b.json").write_text("{}")
    return LabelmeSource(folder, folder)


def metadata(folder: Path) -> Source:
    for name in "abc":
        (folder / f"{name}.png").write_bytes(png())
    write_list(folder / "metadata.jsonl", [{"file_name": "a.png", "words": "a"}, {"file_name": "", "words": "b"}])
    return open_source(folder)


def images(folder: Path) -> Source:
    for name in ("a.png", "b.txt"):
        (folder / name).write_bytes(png())
    return open_source(folder)


def lists(folder: Path) -> Source:
    for name in "ab":
        write_list(folder / f"{name}.jsonl", [{"image": f"{name}\\x.png", "words": "a"}, {"image": ""}])
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(png())
    return open_source(f"{folder}/*.jsonl")


def table(folder: Path) -> Source:
    (folder / "a.tsv").write_text('image\twords\na.png\t"an ""a"""\n\tnone\n')
    return open_source(folder / "a.tsv")


def tar(folder: Path) -> Source:
    return open_source(write_tar(folder / "a.tar", [("a.png", png()), ("a.json", b"{"), ("b.txt", b"b")]))


@pytest.mark.parametrize("make", [coco, yolo, labelme, metadata, images, lists, table, tar])
def test_what_a_source_counts_is_the_same_each_time(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    """Catches counts that add up from reading to reading, and those of the opening that the first reading drops."""
    source = make(tmp_path)
    first, counts = list(source), source.counts.copy()
    examples, texts = dict(source.counts.examples), list(source.counts.other_texts)
    assert counts and first
    assert (list(source), source.counts) == (first, counts)
    assert (source.counts.examples, list(source.counts.other_texts)) == (examples, texts)
