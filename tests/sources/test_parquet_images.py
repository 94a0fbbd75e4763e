"""Images whose bytes stand in Parquet files, as in data sets of Hugging Face; and lists of many files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline.images import BadImage
from pad_pipeline.plan import Plan, write_plan
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources import cells
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.storage import Folder
from tests.sources.small_sources import MOST, error_of, png, write_list, write_tar

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]


def contents(source: Any, planned: list[Planned]) -> list[bytes]:
    return [read_bytes(source.root, one.place, MOST) for one in planned]


def write_images(path: Path, count: int, first: int = 0, group: int = 7, **columns: list[Any]) -> list[bytes]:
    """A Parquet file of `{bytes, path}`, in row groups of a few rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(number % 256) for number in range(first, first + count)]
    column = [{"bytes": one, "path": f"{first + number}.png"} for number, one in enumerate(images)]
    pq.write_table(pa.table({"image": column} | columns), path, row_group_size=group)
    return images


def test_llava_recap_is_read(tmp_path: Path) -> None:
    """The form of lmms-lab/LLaVA-ReCap-558K and LLaVA-OneVision-Data: id, image {bytes, path}, conversations."""
    images = write_images(
        tmp_path / "a.parquet", 3, id=["x", "y", "z"], conversations=[TURNS] * 3, data_source=["s"] * 3
    )
    source = open_source(tmp_path / "a.parquet")
    planned = list(source)
    assert [(one.id, one.caption, [*one.conversations]) for one in planned] == [(n, "A dog.", TURNS) for n in "xyz"]
    assert [one.source for one in planned] == ["a.parquet/0", "a.parquet/1", "a.parquet/2"]
    assert contents(source, planned) == images


def test_finevision_is_read(tmp_path: Path) -> None:
    """The form of HuggingFaceM4/FineVision: images is a list of {bytes, path}, texts a list of {user, assistant}."""
    one, two = [{"bytes": png(number), "path": None} for number in (1, 2)]
    texts = [[{"user": "What?", "assistant": "A dog."}]] * 3
    pq.write_table(pa.table({"images": [[one], [one, two], []], "texts": texts}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    planned = list(source)
    assert [(p.id, p.source, p.caption) for p in planned] == [
        ("t-0.0", "t.parquet/0.0", "A dog."), ("t-1.0", "t.parquet/1.0", ""), ("t-1.1", "t.parquet/1.1", ""),
    ]  # fmt: skip
    assert contents(source, planned) == [png(1), png(1), png(2)]
    assert source.counts == {
        "rows with several images, which are annotated without their texts": 1,
        "rows without an image": 1,
    }


@pytest.mark.parametrize("kind", ["binary", "large_binary", "list<binary>", "struct<bytes>"])
def test_bytes_of_every_type_are_read(tmp_path: Path, kind: str) -> None:
    """Catches plain binary columns, which pandas, Spark and img2dataset write."""
    values: list[Any] = [png(1), None, png(3)]
    columns = {
        "binary": pa.array(values, pa.binary()),
        "large_binary": pa.array(values, pa.large_binary()),
        "list<binary>": pa.array([None if one is None else [one] for one in values], pa.list_(pa.binary())),
        "struct<bytes>": pa.array([{"bytes": one} for one in values], pa.struct({"bytes": pa.binary()})),
    }
    pq.write_table(pa.table({"image": columns[kind], "caption": ["a", "b", "c"]}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    planned = list(source)
    assert [(one.caption, one.problem) for one in planned] == [("a", ""), ("c", "")]
    assert contents(source, planned) == [png(1), png(3)]
    assert source.counts == {"rows without an image": 1}


def test_a_row_may_hold_a_path_where_others_hold_bytes(tmp_path: Path) -> None:
    """Catches `{bytes: null, path}`, as `datasets` writes images that were not embedded."""
    (tmp_path / "b.png").write_bytes(png(2))
    column = [{"bytes": png(1), "path": "a.png"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    first, second = source
    assert (first.id, first.source, second.id, second.source) == ("a", "t.parquet/0", "b", "b.png")
    assert read_bytes(source.root, first.place, MOST) == png(1)
    assert source.counts == {"rows without an image": 1}


@pytest.mark.parametrize("statistics", [True, False])
def test_empty_bytes_are_none(tmp_path: Path, statistics: bool) -> None:
    """Catches `{bytes: b"", path}` among rows with bytes, whose image is lost; and a path that leads out of the folder,
    which no plan has seen where the file's statistics promise bytes in every row."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.png").write_bytes(png(2))
    (tmp_path / "out.png").write_bytes(png(9))
    paths = ["a.png", "b.png", None, f"{tmp_path}/sub/b.png", "../out.png", "/etc/passwd", "gone.png", "z.png"]
    column = [{"bytes": b"", "path": path} for path in paths]
    column[0]["bytes"], column[-1]["bytes"] = png(1), png(3)
    pq.write_table(pa.table({"image": column}), tmp_path / "sub/t.parquet", write_statistics=statistics)
    for pattern in (f"{tmp_path}/sub/t.parquet", f"{tmp_path}/*/t.parquet"):
        source = open_source(pattern)
        found = []
        for one in source:
            place = Place(one.place.file or one.source, *one.place[1:])
            try:
                assert not one.problem
                found.append(read_bytes(source.root, place, MOST)[-30:])
            except (BadImage, AssertionError) as error:
                found.append(one.problem or str(error))
        assert [*found[:2], found[3], found[-1]] == [png(1)[-30:], png(2)[-30:], png(2)[-30:], png(3)[-30:]]
        assert "row 2 of " in found[2] and "holds no bytes of an image" in found[2]
        assert found[4] == png(9)[-30:] if "*" in pattern else "climbs out" in found[4]  # the root holds all lists
        assert "is absolute" in found[5] and "there is no such file" in found[6]
        assert not source.counts


def test_a_plan_keeps_the_place_of_a_row(tmp_path: Path) -> None:
    """Catches an address that is lost on the way to the worker."""
    images = write_images(tmp_path / "a#b.parquet", 20)
    out = tmp_path / "out"
    out.mkdir()
    source = open_source(tmp_path / "a#b.parquet")
    facts = write_plan(source, out / "plan.parquet", 8, "full")
    plan = Plan(Folder(out))
    rows = [row for number in range(len(plan)) for row in plan.shard(number)]
    assert (facts.images, facts.there) == (20, 20)
    assert [read_bytes(source.root, row.place, MOST) for row in rows] == images  # type: ignore[arg-type]
    assert all(row.content_sha256 for row in rows)


def test_threads_may_ask_for_rows_in_any_order(tmp_path: Path) -> None:
    """Catches a row that gets its neighbor's bytes, where many threads read ahead of each other."""
    images = write_images(tmp_path / "a.parquet", 200, group=50)
    source = open_source(tmp_path / "a.parquet")
    places = [one.place for one in source]
    order = [(7 * number) % 200 for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: read_bytes(source.root, places[number], MOST), order))
    assert found == [images[number] for number in order]


def test_few_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a reader that loads a file, or a row group, for one image; and one that reads a group again for each."""
    write_images(tmp_path / "a.parquet", 400, group=400)
    source = open_source(tmp_path / "a.parquet")
    places = [one.place for one in source]
    begun = []
    begin = cells._Column._begin
    monkeypatch.setattr(cells._Column, "_begin", lambda self, row: begun.append(row) or begin(self, row))
    for place in places:
        read_bytes(source.root, place, MOST)
        (column,) = [one for (where, _), one in cells._columns.items() if where == f"{tmp_path}/a.parquet"]
        assert sum(len(values) for _, values in column.kept) <= 128
    assert begun == [0]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_one_line(tmp_path: Path, cut: float) -> None:
    """Catches a download that broke off: its footer, at the end, is gone."""
    write_images(tmp_path / "a.parquet", 20)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: int(len(content) * cut)])
    assert "it can't be read" in error_of(tmp_path / "a.parquet")


def test_a_file_that_changes_after_the_plan_is_a_bad_image(tmp_path: Path) -> None:
    """Catches a traceback, or another row's image, where the file was replaced or damaged after it was planned."""
    write_images(tmp_path / "a.parquet", 20)
    source = open_source(tmp_path / "a.parquet")
    last = list(source)[-1]
    write_images(tmp_path / "a.parquet", 3)
    cells._columns.clear()
    with pytest.raises(BadImage, match="has no row 19"):
        read_bytes(source.root, last.place, MOST)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 100)
    cells._columns.clear()
    with pytest.raises(BadImage, match="can't be read"):
        read_bytes(source.root, last.place, MOST)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(BadImage):
        read_bytes(source.root, last.place, MOST)


@pytest.mark.parametrize(
    "where", ["data/train-*.parquet", "data/train-{00000..00002}.parquet", "data", "", "files.txt"]
)
def test_many_files_are_one_source(tmp_path: Path, where: str) -> None:
    """Catches a data set of several files of which one alone can be named."""
    images = []
    for number in range(3):
        images += write_images(tmp_path / f"data/train-{number:05d}.parquet", 4, 4 * number)
    (tmp_path / "README.md").write_text("# a data set")
    (tmp_path / "files.txt").write_text("".join(f"data/train-{number:05d}.parquet\n" for number in range(3)))
    source = open_source(f"{tmp_path}/{where}")
    planned = list(source)
    assert [one.id for one in planned] == [str(number) for number in range(12)]
    assert contents(source, planned) == images


def test_a_hole_in_a_brace_pattern_is_named(tmp_path: Path) -> None:
    """Catches shards that are missing, and nobody is told."""
    for number in (0, 2):
        write_tar(tmp_path / f"{number:03d}.tar", [(f"{number}.png", png(number))])
        write_images(tmp_path / f"{number:03d}.parquet", 1)
    for ending in ("tar", "parquet"):
        told = error_of(f"{tmp_path}/{{000..003}}.{ending}")
        assert f"there is no such file: {tmp_path}/001.{ending}, and 1 more of 4 are missing" in told
    source = open_source(f"{tmp_path}/{{002,000}}.tar")
    assert [one.source for one in source] == ["002.tar/2.png", "000.tar/0.png"]


def test_columns_may_differ_from_file_to_file(tmp_path: Path) -> None:
    """Catches a file whose images are lost because the first one had other names; and one without an image column."""
    write_list(tmp_path / "a.csv", [{"image": "a.png", "caption": "a"}])
    write_list(tmp_path / "b.csv", [{"path": "b.png", "text": "b"}])
    assert [(one.source, one.caption) for one in open_source(f"{tmp_path}/*.csv")] == [("a.png", "a"), ("b.png", "b")]
    write_list(tmp_path / "c.csv", [{"words": "c"}])
    assert "c.csv: it has no column image" in error_of(f"{tmp_path}/*.csv")


def test_paths_are_relative_to_the_folder_of_their_list(tmp_path: Path) -> None:
    """Catches two lists of one name in two folders whose images are taken for each other's."""
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(name.encode())
        write_list(tmp_path / name / "list.csv", [{"image": "a.png"}])
    source = open_source(f"{tmp_path}/*/list.csv")
    planned = list(source)
    assert [one.source for one in planned] == ["x/a.png", "y/a.png"]
    assert [(Path(source.root) / one.source).read_bytes() for one in planned] == [b"x", b"y"]


def test_a_root_does_not_go_with_images_inside_a_list(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", 1)
    assert error_of(tmp_path / "a.parquet", tmp_path).startswith("image_root = ")


def test_a_folder_of_images_may_hold_other_files(tmp_path: Path) -> None:
    """Catches a tar beside folders of images that is read in their place."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/a.png").write_bytes(png())
    write_tar(tmp_path / "backup.tar", [("b.png", png())])
    source = open_source(tmp_path)
    assert [one.source for one in source] == ["cats/a.png"]
    assert source.counts.examples == {"files that are no images": "backup.tar"}


@pytest.mark.parametrize(
    "pattern", ["train-*.csv", "*.csv", "{0..1}.csv", "train-{0..1}.csv", "**/*.csv", "./train-*.csv"]
)
def test_a_pattern_without_a_folder_names_files_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Catches a pattern whose first letter is lost, so that other files are read."""
    monkeypatch.chdir(tmp_path)
    for name in ("train-0", "train-1", "rain-0", "rain-1", "0", "1"):
        write_list(tmp_path / f"{name}.csv", [{"image": f"{name}.png"}])
    found = [Path(one.source).stem for one in open_source(pattern)]
    expected = {
        "train-*.csv": ["train-0", "train-1"], "./train-*.csv": ["train-0", "train-1"], "{0..1}.csv": ["0", "1"],
        "train-{0..1}.csv": ["train-0", "train-1"],
    }  # fmt: skip
    assert found == expected.get(pattern, ["0", "1", "rain-0", "rain-1", "train-0", "train-1"])


def test_a_folder_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    """Catches the images of another folder, which the brackets match as a pattern."""
    for name in ("set [1]", "set 1"):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name / "a.csv", [{"image": f"{name}.png"}])
    assert [one.source for one in open_source(f"{tmp_path}/set [1]/*.csv")] == ["set [1].png"]


def test_all_files_of_a_large_folder_are_read(tmp_path: Path) -> None:
    """Catches a limit that leaves the rest of 41,455 tars out in silence."""
    for number in range(10_050):
        (tmp_path / f"{number:05d}.tar").touch()
    write_tar(tmp_path / "00000.tar", [("a.png", png())])
    source = open_source(tmp_path)
    assert len(source._tars) == 10_050  # type: ignore[attr-defined]


def test_tars_of_img2dataset_stand_beside_their_tables(tmp_path: Path) -> None:
    """Catches images that are fetched from the web again, though they are in the tars."""
    write_tar(tmp_path / "00000.tar", [("a.png", png())])
    write_list(tmp_path / "00000.parquet", [{"url": "http://127.0.0.1:9/x.png"}])
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "._00000.tar").write_bytes(b"of a Mac")
    assert [one.source for one in open_source(tmp_path)] == ["00000.tar/a.png"]
    write_list(tmp_path / "other.parquet", [{"url": "http://127.0.0.1:9/x.png"}])
    assert "it holds tars (00000.tar, ...) and Parquet files" in error_of(tmp_path)


def test_a_clone_of_the_hub_is_its_parquet_files(tmp_path: Path) -> None:
    """Catches a figure in `assets` that is taken for the whole data set."""
    write_images(tmp_path / "data/train-0.parquet", 2)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/figure.png").write_bytes(png())
    (tmp_path / ".gitattributes").write_text("")
    assert [one.source for one in open_source(tmp_path)] == ["train-0.parquet/0", "train-0.parquet/1"]


def test_a_column_may_be_called_like_a_part_of_the_image(tmp_path: Path) -> None:
    """Catches `image.path`, as pandas' json_normalize calls a flat column."""
    table = pa.table({"image": [png(1)], "image.path": ["p.png"], "caption": ["a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    (planned,) = source
    assert read_bytes(source.root, planned.place, MOST) == png(1)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[{"bytes": png(1), "path": None}] * 2], pa.list_(STRUCT, 2)),
        pa.array([[png(1), png(1)]], pa.list_(pa.binary(), 2)),
        pa.array([png(1)]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type)[:30],
)  # fmt: skip
def test_lists_of_fixed_size_and_dictionaries_are_read(tmp_path: Path, column: pa.Array) -> None:
    """Catches `Sequence(Image(), length=2)` of `datasets`, and repeated images that were stored once."""
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert {bytes(one) for one in contents(source, list(source))} == {png(1)}


def test_a_missing_caption_is_taken_from_the_next_column(tmp_path: Path) -> None:
    """Catches captions that are lost where `datasets` merged records with other names: the rest of a row is null."""
    rows = [{"image": "a.png", "caption": "c", "text": None}, {"image": "b.png", "caption": None, "text": "t"}]
    for kind in ("parquet", "jsonl", "csv", "tsv"):
        assert [one.caption for one in open_source(write_list(tmp_path / f"l.{kind}", rows))] == ["c", "t"], kind
    (tmp_path / "l.jsonl").write_text(
        '{"image": "a.png", "caption": "", "recaption": "R"}\n{"image": NaN, "url": "b.png"}'
    )
    assert [(one.source, one.caption) for one in open_source(tmp_path / "l.jsonl")] == [("a.png", "R"), ("b.png", "")]


def test_a_row_of_numbers_is_no_header(tmp_path: Path) -> None:
    """Catches a first row that is lost because one of its fields is the number that names a column."""
    (tmp_path / "l.tsv").write_text("a cat\ta.png\t2\nb\tb.png\t3\n")
    assert [one.source for one in open_source(tmp_path / "l.tsv", columns={"image": "2"})] == ["a.png", "b.png"]


def test_images_that_metadata_does_not_list_are_counted(tmp_path: Path) -> None:
    """Catches images of a folder that vanish because its metadata names only some of them."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}\n')
    source = open_source(tmp_path)
    assert [one.caption for one in source] == ["a dog"]
    assert source.counts == {"images that the metadata file does not list, which are left out": 2}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_many_lists_are_one_source(tmp_path: Path, ending: str) -> None:
    """Catches lists of JSON of which only one can be named, and metadata of Hugging Face in the folders of splits."""
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(split.encode())
        (tmp_path / split / "b.png").write_bytes(split.encode())
        rows = [{"file_name": "a.png", "text": f"of {split}"}, {"text": "no image"}]
        path = tmp_path / split / f"metadata.{ending}"
        path.write_text(json.dumps(rows)) if ending == "json" else write_list(path, rows)
    sources = [open_source(f"{tmp_path}/*/metadata.{ending}")]
    sources += [open_source(tmp_path)] if ending != "json" else []
    for source in sources:
        planned = list(source)
        assert [(one.source, one.caption) for one in planned] == [
            ("test/a.png", "of test"), ("train/a.png", "of train"),
        ]  # fmt: skip
        assert [(Path(source.root) / one.source).read_text() for one in planned] == ["test", "train"]
        without = [what for what in source.counts if what.endswith("without an image")]
        assert [source.counts[what] for what in without] == [2]
    if ending != "json":
        assert source.counts["images that the metadata file does not list, which are left out"] == 2
