"""Parquet files of one data set that do not agree: each is read by its own columns, or named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline.images import BadImage
from pad_pipeline.plan import Plan, write_plan
from pad_pipeline.records import Place
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.storage import Folder
from tests.sources.small_sources import MOST, error_of, png

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGE = pa.array([{"bytes": png(), "path": "x.png"}], STRUCT)
ANSWER = [{"from": "gpt", "value": "a"}]


def write_tables(folder: Path, columns: list[dict[str, Any]]) -> str:
    """A Parquet file of one row for each; the pattern of all."""
    for number, one in enumerate(columns):
        table = {name: value if isinstance(value, pa.Array) else pa.array([value]) for name, value in one.items()}
        pq.write_table(pa.table(table), folder / f"{number}.parquet")
    return f"{folder}/*.parquet"


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("id", [7, "x", 1.5, 7.0, pa.array([None], pa.null())], ["7", "x", "1.5", "7", "x"]),
        ("caption", ["t", ["u", "v"], 3, pa.array([None], pa.null())], ["t", "u", "3", ""]),
        ("conversations", [ANSWER, '[{"from": "gpt", "value": "b"}]', {"from": ["gpt"], "value": ["c"]}], list("abc")),
        ("json", ['{"caption": "j"}', {"caption": "s"}, 7], ["j", "s", ""]),
    ],
)
def test_a_column_may_have_another_type_in_each_file(
    tmp_path: Path, name: str, values: list[Any], found: list[str]
) -> None:
    """Catches an Arrow error, and values that are lost, where one file's numbers are the next one's text."""
    planned = list(open_source(write_tables(tmp_path, [{"image": IMAGE, name: value} for value in values])))
    assert [one.id if name == "id" else one.caption for one in planned] == found
    assert not any(one.problem for one in planned)


def test_images_may_have_another_type_in_each_file(tmp_path: Path) -> None:
    """Catches a reader that takes the first file's type for all: bytes, `{bytes, path}`, paths, and lists of them."""
    (tmp_path / "p.png").write_bytes(png())
    listed = pa.array([[{"bytes": png(), "path": None}]], pa.list_(STRUCT))
    images = [IMAGE, pa.array([png()]), pa.array(["p.png"]), listed, pa.array([None], pa.null())]
    source = open_source(write_tables(tmp_path, [{"image": image} for image in images]))
    planned = list(source)
    assert [one.id for one in planned] == ["x", "1-0", "p", "3-0.0"]
    places = [Place(one.place.file or one.source, *one.place[1:]) for one in planned]
    assert [read_bytes(source.root, place, MOST) for place in places] == [png()] * 4
    assert source.counts == {"rows without an image": 1}


def test_a_file_without_captions_among_others_is_counted(tmp_path: Path) -> None:
    """Catches captions of a whole file that are missing, and nobody is told."""
    source = open_source(write_tables(tmp_path, [{"image": IMAGE, "text": "t"}, {"image": IMAGE}, {"image": IMAGE}]))
    assert [one.caption for one in source] == ["t", "", ""]
    assert source.counts == {"files without a column of captions or conversations, which other files have": 2}
    assert list(source.counts.examples.values()) == ["1.parquet"]
    source = open_source(f"{tmp_path}/[12].parquet")
    assert list(source) and not source.counts


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"words": "w"}, "1.parquet: it has no column image"),
        ({"image": IMAGE, "caption": {"a": 1}}, "1.parquet: its column 'caption' is of type struct"),
        ({"image": IMAGE, "id": b"x"}, "1.parquet: its column 'id' is of type binary"),
        ({"image": {"bytes": "text"}}, "1.parquet: its column 'image' is of type struct"),
    ],
)
def test_a_file_that_can_not_be_used_is_named(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    """Catches a traceback, or a file that is left out, where a later file has no image or a type that says nothing."""
    assert told in error_of(write_tables(tmp_path, [{"image": IMAGE}, columns, {"image": IMAGE}]))


@pytest.mark.parametrize("cut", [0, 4, 0.5, 0.99])
def test_a_truncated_file_among_others_is_named(tmp_path: Path, cut: float) -> None:
    """Catches a download that broke off, and a data set that is planned without its images."""
    pattern = write_tables(tmp_path, [{"image": IMAGE}] * 3)
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[: int(cut * len(content)) if cut < 1 else int(cut)])
    assert f"images = {tmp_path}/1.parquet: it can't be read" in error_of(pattern)


def test_a_file_that_is_damaged_inside_costs_its_own_images(tmp_path: Path) -> None:
    """Catches one bad page, whose file has a sound footer, that stops the images of all other files."""
    pattern = write_tables(tmp_path, [{"image": IMAGE}] * 3)
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[:20] + bytes(40) + content[60:])
    source = open_source(pattern)
    first, second, third = source
    assert read_bytes(source.root, first.place, MOST) == read_bytes(source.root, third.place, MOST) == png()
    with pytest.raises(BadImage, match=r"1\.parquet can't be read"):
        read_bytes(source.root, second.place, MOST)


def test_files_of_one_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    """Catches an image of one folder's file that is read from the other's, and one of two equal ids that is lost."""
    for shade, name in enumerate("xy"):
        (tmp_path / name).mkdir()
        image = pa.array([{"bytes": png(shade), "path": "a.png"}], STRUCT)
        pq.write_table(pa.table({"image": image}), tmp_path / name / "train.parquet")
    source = open_source(f"{tmp_path}/*/train.parquet")
    (tmp_path / "out").mkdir()
    write_plan(source, tmp_path / "out/plan.parquet", 4)
    rows = Plan(Folder(tmp_path / "out")).shard(0)
    assert [(row.key, row.id, row.source) for row in rows] == [
        ("a", "a", "x/train.parquet/0"), (rows[1].key, "a", "y/train.parquet/0"),
    ]  # fmt: skip
    assert rows[1].key != "a"
    assert [read_bytes(source.root, row.place, MOST) for row in rows] == [png(0), png(1)]  # type: ignore[arg-type]
    assert source.counts == {"repeated ids, kept under keys of their own": 1}
