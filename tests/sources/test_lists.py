"""Lists of images say the same in every format: Parquet, CSV, TSV, JSONL and NDJSON."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline.sources.open import open_source
from tests.sources.small_sources import LISTS, brief, error_of, write_list


@pytest.mark.parametrize("kind", LISTS)
def test_every_kind_of_list_says_the_same(tmp_path: Path, kind: str) -> None:
    """Would catch a kind that alters captions, loses a row, or forgets to count the rows without an image."""
    captions = ['a "red", old house', "ein Hund läuft 🐕", "", " spaces "]
    captions += [] if kind == "tsv" else ["two\nlines"]  # a TSV has no quotes that could hold a line's end
    rows = [{"image": f"d/{n}.jpg", "id": f"n{n}", "caption": caption} for n, caption in enumerate(captions)]
    source = open_source(write_list(tmp_path / f"list.{kind}", [*rows, {"image": None, "id": "x", "caption": "y"}]))
    for _ in range(2):
        assert list(map(brief, source)) == [(row["id"], row["image"], row["caption"]) for row in rows]
        quoted = {"fields in quotes, as in a CSV, whose quotes are removed": 1} if kind == "tsv" else {}
        assert source.counts == {"rows without an image": 1} | quoted
    assert source.root == str(tmp_path)
    assert source.origin == str(tmp_path / f"list.{kind}")


@pytest.mark.parametrize("kind", LISTS)
def test_columns_are_guessed_in_any_case_and_order(tmp_path: Path, kind: str) -> None:
    """Would catch a guess that depends on case, or that takes a `url` where there is an `image`."""
    row = {"URL": "https://h/no.jpg", "TXT": "words", "Image": "yes.jpg", "UID": "u1", "Caption": "said"}
    assert list(map(brief, open_source(write_list(tmp_path / f"a.{kind}", [row])))) == [("u1", "yes.jpg", "said")]
    row = {"Key": "k", "alt": "words", "image_url": "https://h/yes.jpg"}
    assert list(map(brief, open_source(write_list(tmp_path / f"b.{kind}", [row])))) == [
        ("k", "https://h/yes.jpg", "words")
    ]


@pytest.mark.parametrize("kind", LISTS)
def test_columns_can_be_named(tmp_path: Path, kind: str) -> None:
    """Would catch a named column that gives way to a guess, and a typing error that passes in silence."""
    row = {"image": "no.jpg", "jpg_url": "https://h/yes.jpg", "caption": "no", "alt": "yes", "n": 7}
    path = write_list(tmp_path / f"list.{kind}", [row])
    columns = {"image": "jpg_url", "caption": "alt", "id": "n"}
    assert list(map(brief, open_source(path, columns=columns))) == [("7", "https://h/yes.jpg", "yes")]
    for wrong in ({"image": "jpeg"}, {"img": "image"}):
        told = error_of(path, columns=wrong)
        assert told.startswith("columns = ")
        assert "image, jpg_url, caption, alt, n" in told


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_without_images_is_refused(tmp_path: Path, kind: str) -> None:
    """Would catch a build of nothing, from a list whose columns pad doesn't know."""
    told = error_of(write_list(tmp_path / f"list.{kind}", [{"photo": "a.jpg", "words": "w"}]))
    assert "its columns are: photo, words" in told
    assert "`columns` image=NAME" in told


@pytest.mark.parametrize("kind", LISTS)
def test_an_image_without_an_id_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    """Would catch ids with slashes of a host, with a query, or that lose the folder."""
    images = ["d.x/a.b.jpg", "https://h.org/p/q.v2.jpg?size=3.5#top", "https://h.org/", "plain"]
    planned = list(open_source(write_list(tmp_path / f"list.{kind}", [{"image": image} for image in images])))
    assert [p.source for p in planned] == images
    assert [p.id for p in planned[:2]] == ["d.x/a.b", "q.v2"]
    assert planned[2].id
    assert planned[3].id == "plain"


@pytest.mark.parametrize("kind", LISTS)
def test_numbers_are_text_and_null_is_nothing(tmp_path: Path, kind: str) -> None:
    """Would catch captions "None" and "nan", and numbers that stop the list."""
    rows = [{"image": "a.jpg", "id": 7, "caption": 1.5}, {"image": "b.jpg", "id": None, "caption": None}]
    assert list(map(brief, open_source(write_list(tmp_path / f"list.{kind}", rows)))) == [
        ("7", "a.jpg", "1.5"),
        ("b", "b.jpg", ""),
    ]


@pytest.mark.parametrize("kind", LISTS)
def test_conversations_come_with_their_caption(tmp_path: Path, kind: str) -> None:
    """Would catch conversations that only one kind of list can hold, and a broken one that stops all others."""
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A dog."}]
    text = kind in ("csv", "tsv")
    rows = [{"image": "a.jpg", "conversations": json.dumps(turns) if text else turns}]
    rows += [{"image": "b.jpg", "conversations": "" if text else None}]
    if text:
        rows += [{"image": "c.jpg", "conversations": "[{"}, {"image": "d.jpg", "conversations": '["hi"]'}]
    else:
        rows += [{"image": "c.jpg", "conversations": [{"from": "gpt", "value": None}]}]
    first, second, *bad = open_source(write_list(tmp_path / f"list.{kind}", rows))
    assert (first.caption, list(first.conversations)) == ("A dog.", turns)
    assert (second.caption, list(second.conversations), second.problem) == ("", [], "")
    assert bad and all("conversations" in planned.problem for planned in bad)


def test_a_caption_goes_before_the_conversations(tmp_path: Path) -> None:
    """Would catch a caption column that conversations overwrite."""
    turns = [{"from": "gpt", "value": "from the turns"}]
    rows = [{"image": "a.jpg", "caption": caption, "conversations": turns} for caption in ("own", "")]
    planned = list(open_source(write_list(tmp_path / "list.parquet", rows)))
    assert [p.caption for p in planned] == ["own", "from the turns"]


@pytest.mark.parametrize("kind", LISTS)
def test_hostile_places_are_failed_rows(tmp_path: Path, kind: str) -> None:
    """Would catch a list that reads files outside its root, or through a scheme that opens this machine's own."""
    hostile = [
        *(
            "../x.jpg",
            "a/../../x.jpg",
            "/etc/passwd",
            "\\\\host\\x.jpg",
            "..\\x.jpg",
            "C:\\x.jpg",
            f"{tmp_path}/../x.jpg",
        ),
        *("file:///etc/passwd", "zip::file:///x.zip", "memory://x", "local://x", "ftp://h/x.jpg", "github://o:r@/x"),
    ]
    planned = list(open_source(write_list(tmp_path / f"list.{kind}", [{"image": image} for image in hostile])))
    assert len(planned) == len(hostile)
    assert [p.source for p in planned if not p.problem] == []


def test_absolute_paths_below_the_root_are_made_relative(tmp_path: Path) -> None:
    """Would catch a list of absolute paths that is refused row by row, also where the root is reached by a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    rows = [{"image": f"{tmp_path}/{folder}/d/a.jpg"} for folder in ("real", "link")]
    planned = list(open_source(write_list(tmp_path / "list.csv", rows), image_root=tmp_path / "link"))
    assert [(p.id, p.source, p.problem) for p in planned] == [("d/a", "d/a.jpg", "")] * 2
    write_list(tmp_path / "real/list.csv", rows)
    planned = list(open_source(tmp_path / "link/list.csv"))
    assert [(p.id, p.source, p.problem) for p in planned] == [("d/a", "d/a.jpg", "")] * 2


@pytest.mark.parametrize("kind", [*LISTS, "json"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, kind: str) -> None:
    """Would catch Latin-1 taken for UTF-8: as a traceback, or as captions with wrong letters."""
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        binary = pa.array([b"Caf\xe9"])
        text = pa.StringArray.from_buffers(1, *binary.buffers()[1:])
        pq.write_table(pa.table({"image": pa.array(["a.jpg"]), "caption": text}), path)
    elif kind == "json":
        path.write_bytes(b'[{"image": "a.jpg", "conversations": [{"from": "gpt", "value": "Caf\xe9"}]}]')
    elif kind in ("csv", "tsv"):
        path.write_bytes(b"image\tcaption\na.jpg\tCaf\xe9\n".replace(b"\t", b"\t" if kind == "tsv" else b","))
    else:
        path.write_bytes(b'{"image": "a.jpg", "caption": "Caf\xe9"}\n')
    assert "images = " in error_of(path)
