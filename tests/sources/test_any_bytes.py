"""Whatever bytes a file has, and whatever values its records have, it gives rows or an error of one line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources import cells, gzipped
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.cvat import CvatSource
from pad_pipeline.sources.fields import NAMES, Fields
from pad_pipeline.sources.labelme import LabelmeSource
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.openimages import OpenImagesSource
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.sources.voc import VocSource
from pad_pipeline.sources.yolo import YoloSource
from tests.sources.annotation_files import BOXES, CVAT, CVAT_IMAGE, DEVKIT, USUAL, VOC, VOC_OBJECT, drawn
from tests.sources.small_sources import png, write_list, write_tar
from tests.sources.test_parquet_images import write_images

COCO = {
    "images": [{"id": number, "file_name": f"{number}.png", "width": 9, "height": 9} for number in range(3)],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 5, 1, 5, 5]]},
        {"id": 2, "image_id": "1", "category_id": 3, "segmentation": {"size": [9, 9], "counts": [81]}, "iscrowd": 1},
        {"id": 3, "image_id": 2, "caption": "a dog"},
    ],
    "categories": [{"id": 3, "name": "thing"}],
}
COCO_FIELDS = [
    "id",
    "image_id",
    "category_id",
    "file_name",
    "bbox",
    "segmentation",
    "iscrowd",
    "width",
    "name",
    "caption",
    "segments_info",
    "coco_url",
    "pad",
    "score",
]
LABELME = drawn([[1, 1], [9, 1], [9, 5]], group=7)
KINDS = ["jsonl", "csv", "tsv", "parquet", "bytes.parquet", "tar", "tar.gz", "json", "txt"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    turns = [{"from": "gpt", "value": "A dog."}]
    rows = [{"image": f"{n}.jpg", "id": n, "caption": f"number {n}"} for n in range(20)]
    for kind in ("parquet", "csv", "tsv", "jsonl"):
        write_list(folder / f"a.{kind}", rows)
    (folder / "a.json").write_text(json.dumps([row | {"conversations": turns} for row in rows]))
    write_images(folder / "a.bytes.parquet", 10, text=["x"] * 10)
    tar = write_tar(
        folder / "a.tar", [(f"{n}.{end}", b'{"id": 1}') for n in range(3) for end in ("jpg", "json", "x" * 200)]
    )
    (folder / "a.tar.gz").write_bytes(gzip.compress(Path(tar).read_bytes()))
    (folder / "a.txt").write_text("a.csv\n")
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in KINDS}


def changed(good: bytes, start: float, cut: int, junk: bytes, keep: bool) -> bytes:
    at = int(start * len(good))
    return good[:at] + junk + good[at + cut :] if keep else junk


def look(opened: Callable[[], Iterable[Planned]], root: str = "") -> None:
    """List a source, and read its images: rows that a plan can hold, or one line."""
    try:
        for planned in opened():
            assert isinstance(planned, Planned)
            assert planned.id
            pa.array([planned.id, planned.source, planned.place.file, planned.caption, planned.problem], pa.string())
            json.dumps([planned.conversations, planned.annotations]).encode()
            if root and planned.place.file:
                assert isinstance(planned.place, Place)
                with suppress(BadImage):
                    read_bytes(root, planned.place, 1 << 20)
    except UserError as error:
        assert "\n" not in str(error)


DAMAGE = {
    "start": st.floats(0, 1),
    "cut": st.integers(0, 600),
    "junk": st.binary(max_size=600),
    "keep": st.booleans(),
}  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(KINDS), **DAMAGE)
def test_any_bytes_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, originals: dict[str, bytes], kind: str, **damage: Any
) -> None:
    """Would catch any traceback that a damaged or hostile file can make, and text that the plan can't hold."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / f"fuzz.{kind}"
    path.write_bytes(changed(originals[kind], **damage))
    cells._columns.clear()
    gzipped._streams.clear()
    look(lambda: open_source(path), str(folder))


@settings(deadline=None, max_examples=100)
@given(kind=st.sampled_from(["coco", "captions", "yaml", "labels"]), **DAMAGE)
def test_any_bytes_of_annotations_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, **damage: Any
) -> None:
    """The same for files of people's annotations."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-annotations"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images/0.png").write_bytes(png())
    good = {
        "coco": json.dumps(COCO),
        "captions": json.dumps([{"image": "0.png", "caption": "a dog"}]),
        "yaml": "train: images\nnames: [cat, dog]\n",
        "labels": "0 0.5 0.5 0.1 0.1\n1 0.1 0.1 0.5 0.1 0.5 0.5\n",
    }
    files = {name: changed(text.encode(), **damage) if name == kind else text.encode() for name, text in good.items()}
    for name, file in {
        "coco": "coco.json",
        "captions": "captions.json",
        "yaml": "data.yaml",
        "labels": "images/0.txt",
    }.items():
        (folder / file).write_bytes(files[name])
    if kind in ("coco", "captions"):
        look(lambda: CocoSource(folder / "coco.json", folder / "images", folder / "captions.json"))
    else:
        look(lambda: YoloSource(folder))


TOOLS: dict[str, tuple[str, str, Callable[[Path], Iterable[Planned]]]] = {
    "voc": (
        "a/0.xml",
        VOC.format(name="0.png", database=DEVKIT, width=40, objects=VOC_OBJECT.format("cat", 1, 1, 9, 9)),
        lambda folder: VocSource(folder / "a", folder),
    ),
    "cvat": (
        "annotations.xml",
        CVAT.format(images=CVAT_IMAGE.format(f'<mask {USUAL} rle="1, 2" left="1" top="1" width="2" height="2"/>')),
        lambda folder: CvatSource(folder, folder),
    ),
    "labelme": (
        "a/0.json",
        json.dumps({"shapes": [LABELME], "imagePath": "../0.png", "imageWidth": 40, "imageHeight": 20}),
        lambda folder: LabelmeSource(folder / "a", folder),
    ),
    "boxes": (
        "boxes.csv",
        f"{BOXES}\n0,xclick,/m/0cmf2,1,0.1,0.5,0.2,0.4,0,0,0,0,0\n",
        lambda folder: OpenImagesSource(folder / "boxes.csv", folder, folder / "classes.csv"),
    ),
    "classes": (
        "classes.csv",
        "/m/0cmf2,Airplane\n",
        lambda folder: OpenImagesSource(folder / "boxes.csv", folder, folder / "classes.csv"),
    ),
}
"""Kind of file -> its path, a good one, and the source that reads it."""


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from([*TOOLS]), **DAMAGE)
def test_any_bytes_of_annotation_tools_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, **damage: Any
) -> None:
    """The same for the own files of annotation tools."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-tools"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for name in ("0.png", "0.jpg"):
        (folder / name).write_bytes(png())
    for one, (path, good, _) in TOOLS.items():
        (folder / path).write_bytes(changed(good.encode(), **damage) if one == kind else good.encode())
    look(lambda: TOOLS[kind][2](folder))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["0.png", "a dog", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "path", "bytes", "type", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FIELD = st.sampled_from([*(name for names in NAMES.values() for name in names[:5]), "other"])


@settings(deadline=None, max_examples=150)
@given(records=st.lists(st.dictionaries(FIELD, VALUES, max_size=4) | VALUES, max_size=4), lines=st.booleans())
def test_any_values_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], lines: bool
) -> None:
    """Would catch a field of a type that nobody expects: a traceback, or text that the plan can't hold."""
    path = tmp_path_factory.getbasetemp() / ("values.jsonl" if lines else "values.json")
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    look(lambda: open_source(path))


@settings(deadline=None, max_examples=150)
@given(
    part=st.sampled_from(["images", "annotations", "categories"]),
    name=st.sampled_from(COCO_FIELDS),
    value=VALUES,
)
def test_any_values_of_annotations_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, part: str, name: str, value: Any
) -> None:
    """The same for each field of a COCO file."""
    folder = tmp_path_factory.getbasetemp()
    data: Any = json.loads(json.dumps(COCO))
    data[part][0][name] = value
    (folder / "values-coco.json").write_text(json.dumps(data))
    look(lambda: CocoSource(folder / "values-coco.json", folder))


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from([*LABELME, "shapes", "imagePath", "imageWidth", "imageHeight"]), value=VALUES)
def test_any_values_of_labelme_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    """The same for each field of a file of labelme, for two shapes of one group."""
    folder = tmp_path_factory.getbasetemp() / "values-labelme"
    folder.mkdir(exist_ok=True)
    (folder / "0.png").write_bytes(png())
    data: dict[str, Any] = {"imagePath": "0.png", "imageWidth": 40, "imageHeight": 20}
    data |= {"shapes": [LABELME, LABELME | ({name: value} if name in LABELME else {})]}
    (folder / "0.json").write_text(json.dumps(data if name in LABELME else data | {name: value}))
    look(lambda: LabelmeSource(folder, folder))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8) | st.sampled_from(
    ["nan", "-1", "1e999", "0", "0,0", "1,1;2,2;3,9", "99999999999", "../0.png", "0.5"]
)
AREAS = f"""<box {USUAL} xtl="1" ytl="1" xbr="9" ybr="9" rotation="45"/><polygon {USUAL} points="1,1;9,1;9,9"/>
<mask {USUAL} rle="1, 3" left="1" top="1" width="2" height="2"/><ellipse {USUAL} cx="9" cy="9" rx="5" ry="5"/>"""


@settings(deadline=None, max_examples=200)
@given(at=st.floats(0, 0.99), text=TEXT)
def test_any_text_in_xml_is_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, at: float, text: str) -> None:
    """The same for each attribute of CVAT's shapes, and each value of VOC."""
    folder = tmp_path_factory.getbasetemp() / "text-xml"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    (folder / "0.png").write_bytes(png())
    cvat = CVAT.format(images=CVAT_IMAGE.format(AREAS))
    voc = VOC.format(name="0.png", database=DEVKIT, width=40, objects=VOC_OBJECT.format("cat", 1, 1, 9, 9))
    for path, good, value in (("annotations.xml", cvat, r'(?<==")[^"]*'), ("a/0.xml", voc, r"(?<=>)[^<>\n]+(?=<)")):
        places = [found.span() for found in re.finditer(value, good)]
        start, end = places[int(at * len(places))]
        (folder / path).write_text(good[:start] + escape(text, {'"': "&quot;"}) + good[end:], "utf-8")
    look(lambda: CvatSource(folder, folder))
    look(lambda: VocSource(folder / "a", folder))


@settings(deadline=None, max_examples=300)
@given(
    record=st.dictionaries(FIELD, VALUES, max_size=5),
    turns=st.none() | st.just([{"from": "gpt", "value": "A <image> dog."}]),
)
def test_the_fast_way_reads_what_the_slow_way_reads(record: dict[str, Any], turns: Any) -> None:
    """Catches two rules where there should be one: usual records take a shorter way, because millions are read."""
    record |= {} if turns is None else {"conversations": turns}
    fast, slow = (Fields("/nowhere", "/nowhere", Tally()) for _ in range(2))
    assert fast.rows(7, record) == slow.planned(slow.read(record), 7)
    assert fast.counts == slow.counts
