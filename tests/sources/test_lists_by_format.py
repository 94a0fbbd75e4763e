"""What can only go wrong in one format of lists: in JSONL, in CSV, or in Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline.sources.open import open_source
from tests.sources.small_sources import brief, error_of, png, write_list


def test_nan_in_a_list_is_null(tmp_path: Path) -> None:
    """Would catch `nan` as a caption or a failed row: it is how pandas writes a missing value."""
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "a.jpg", "id": NaN, "caption": NaN, "conversations": NaN}\n{"image": NaN}\n')
    source = open_source(path)
    assert list(map(brief, source)) == [("a", "a.jpg", "")]
    assert source.counts == {"rows without an image": 1}


def test_an_image_that_is_no_path_is_a_failed_row(tmp_path: Path) -> None:
    """Would catch a traceback for a number or an object, and an id that is lost with it."""
    lines = ['{"image": 3, "id": "n"}', '{"image": [1.5]}', '{"image": {"bytes": ""}}', '{"image": ""}', '"text"']
    lines += ['{"image": "a.jpg", "caption": {}}', '{"image": "b.jpg", "id": {}}', '{"image": "c.jpg"}']
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    planned = list(open_source(tmp_path / "list.jsonl"))
    assert [bool(p.problem) for p in planned] == [True] * 7 + [False]
    assert planned[0].id == "n"
    assert [p.source for p in planned[5:]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert len({p.id for p in planned}) == len(planned)


def test_jsonl_names_may_change_on_the_way(tmp_path: Path) -> None:
    """Would catch captions lost in silence where two files with other names were put together."""
    one, other = {"image": "a.jpg", "id": "1"}, {"PATH": "b.jpg", "text": "words"}
    planned = list(open_source(write_list(tmp_path / "list.jsonl", [one] * 1500 + [other])))
    assert brief(planned[-1]) == ("b", "b.jpg", "words")


def test_jsonl_errors_name_the_line(tmp_path: Path) -> None:
    """Would catch an error that nobody can find, and lines that are miscounted where some are empty."""
    for bad in ("{", '{"image": "b.jpg"} {}', "[" * 100_000, '{"image": NULL}'):
        (tmp_path / "list.jsonl").write_text('{"image": "a.jpg"}\n\n' + bad + "\n")
        assert "line 3 is not valid JSON" in error_of(tmp_path / "list.jsonl")


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    """Would catch a lone surrogate, which an escape can make and no UTF-8 file can hold."""
    for line in (r'{"image": "a.jpg", "caption": "\uD83D!"}', r'{"image": "a.jpg", "caption": "\ud83d!"}'):
        (tmp_path / "list.jsonl").write_text(line)
        (planned,) = open_source(tmp_path / "list.jsonl")
        assert planned.caption == "\ufffd!"
    turns = r'[{"from": "gpt", "value": "\ud83d!"}]'
    (planned,) = open_source(write_list(tmp_path / "list.csv", [{"image": "a.jpg", "conversations": turns}]))
    assert planned.caption == "\ufffd!"


def test_a_csv_row_of_another_length_is_a_failed_row(tmp_path: Path) -> None:
    """Would catch a caption with an unquoted comma that shifts its columns, and one bad row that stops the list."""
    (tmp_path / "list.csv").write_text("\ufeffimage,caption\na.jpg,one\nb.jpg,two, three\n\nc.jpg\nd.jpg,four\n")
    planned = list(open_source(tmp_path / "list.csv"))
    assert [p.source for p in planned if not p.problem] == ["a.jpg", "d.jpg"]
    assert [p.problem.split(":")[0] for p in planned if p.problem] == ["line 3", "line 5"]


def test_broken_csv_is_refused(tmp_path: Path) -> None:
    """Would catch a quote that is never closed, which swallows the rows behind it; and a field without an end."""
    for text in ('image,caption\na.jpg,"one\nb.jpg,two\n', "image\n" + "x" * (17 << 20), "", "\n"):
        (tmp_path / "list.csv").write_text(text)
        assert error_of(tmp_path / "list.csv").startswith("images = ")
    (tmp_path / "list.csv").write_text("image,caption\na.jpg," + "x" * 200_000 + "\n")
    assert [len(one.caption) for one in open_source(tmp_path / "list.csv")] == [200_000]  # a long conversation
    (tmp_path / "list.csv").write_text("image\na\0.jpg\n")
    (planned,) = open_source(tmp_path / "list.csv")
    assert "NUL" in planned.problem


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"pixels": png()}]),
        pa.array([[1, 2]]),
        pa.array([3]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_no_images_is_refused(tmp_path: Path, column: pa.Array) -> None:
    """Would catch ten million failed rows where one line at the start says it."""
    pq.write_table(pa.table({"image": column, "id": ["a"]}), tmp_path / "list.parquet")
    assert "should hold paths, URLs, or bytes of images" in error_of(tmp_path / "list.parquet")


def test_text_of_every_arrow_type_is_read(tmp_path: Path) -> None:
    """Would catch a type of text that pandas, polars or Spark writes and pad refuses."""
    names = pa.array(["a.jpg", None])
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"image": names.cast(kind), "caption": names.cast(kind)}), tmp_path / "list.parquet")
        assert list(map(brief, open_source(tmp_path / "list.parquet"))) == [("a", "a.jpg", "a.jpg")]
    pq.write_table(pa.table({"image": names, "caption": pa.array([[1], None])}), tmp_path / "list.parquet")
    assert "'caption'" in error_of(tmp_path / "list.parquet")
    pq.write_table(pa.Table.from_arrays([names, names], ["image", "image"]), tmp_path / "list.parquet")
    assert "more than one column 'image'" in error_of(tmp_path / "list.parquet")


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    """Would catch a list that is read whole, or row group by row group: one of the size of memory is nothing rare."""
    rng = np.random.default_rng(0)
    captions = [rng.bytes(100).hex() for _ in range(60_000)]
    table = pa.table({"image": [f"{n}.jpg" for n in range(60_000)], "caption": captions})
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=60_000, use_dictionary=False)
    del table
    before = pa.total_allocated_bytes()
    source = open_source(tmp_path / "list.parquet")
    most = max(pa.total_allocated_bytes() - before for number, _ in enumerate(source) if number % 1000 == 0)
    assert most < (tmp_path / "list.parquet").stat().st_size / 2


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    """Would catch a traceback of Arrow's, from the footer or, later, from a page."""
    path = Path(write_list(tmp_path / "list.parquet", [{"image": f"{n}.jpg"} for n in range(5000)]))
    content = path.read_bytes()
    for bad in (b"", b"PAR1", content[:-100], content[100:], content[:100] + bytes(400) + content[500:]):
        path.write_bytes(bad)
        assert error_of(path).startswith("images = ")
