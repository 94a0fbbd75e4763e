"""Whatever bytes a file has, and whatever values its records have, it gives rows or an error of one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

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
from pad_pipeline.sources.fields import NAMES, Fields
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.sources.yolo import YoloSource
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


@settings(deadline=None, max_examples=300)
@given(
    record=st.dictionaries(FIELD, VALUES, max_size=5),
    turns=st.none() | st.just([{"from": "gpt", "value": "A <image> dog."}]),
)
def test_the_fast_way_reads_what_the_slow_way_reads(record: dict[str, Any], turns: Any) -> None:
    """Catches two rules where there should be one: usual records take a shorter way, because millions are read."""
    record |= {} if turns is None else {"conversations": turns}
    fast, slow = (Fields("/nowhere", "/nowhere", Tally()) for _ in range(2))
    assert fast.rows(record, 7) == slow.planned(slow.read(record), 7)
    assert fast.counts == slow.counts
