"""Where images come from: every source lists what is there, tells what is not, and takes nothing on trust."""

from __future__ import annotations

import csv
import gzip
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.records import Place
from pad_pipeline.sources import llava, read
from pad_pipeline.sources.base import Planned, clean
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes

LISTS = ["parquet", "csv", "tsv", "jsonl", "ndjson"]
MOST = 1 << 20


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade).save(stream, "PNG")
    return stream.getvalue()


def write_list(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a list of the kind that the path's ending says."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def brief(planned: Planned) -> tuple[str, str, str]:
    return planned.id, planned.source, planned.caption


def error_of(*arguments: Any, **options: Any) -> str:
    """The one line that a user gets, from opening a source or from listing it."""
    with pytest.raises(UserError) as caught:
        list(open_source(*arguments, **options))
    return str(caught.value)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A folder, with ranges; and special answers by path."""

    special: dict[str, Callable[[_Handler], None]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path in self.special:
            return self.special[self.path](self)
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file() or wanted is None:
            return super().do_GET() if self.command == "GET" else super().do_HEAD()
        content = path.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        self.answer(part, 206, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`tmp_path / "web"` over HTTP on this machine; no waiting between tries."""
    monkeypatch.setattr(read.time, "sleep", lambda _: None)
    folder = tmp_path / "web"
    folder.mkdir()
    handler = type("Handler", (_Handler,), {"special": {}})
    serve = lambda *a, **k: handler(*a, directory=str(folder), **k)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}", special=handler.special)
        server.shutdown()


# Folders


def test_a_folder_lists_images_in_order(tmp_path: Path) -> None:
    """Would catch an order that the file system decides, hidden files taken for images, and others left out unsaid."""
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", ".cache/x.jpg", "notes.txt", "sub/.d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    source = open_source(tmp_path)
    assert [(p.id, p.source) for p in source] == [("a", "a.PNG"), ("b", "b.jpg"), ("sub/c", "sub/c.webp")]
    assert source.counts == {"files that are no images": 1, "links to folders, which are not followed": 1}


def test_a_file_name_that_is_not_utf8_is_a_failed_row(tmp_path: Path) -> None:
    """Would catch a name that no Parquet file can hold, found out when the plan is written."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (planned,) = open_source(tmp_path)
    assert "UTF-8" in planned.problem
    assert planned.source.encode() == b"\\xff.jpg"


def test_a_remote_folder_is_listed_as_a_local_one(web: SimpleNamespace) -> None:
    """Would catch another order, or other names, for the same folder behind a URL."""
    for name in ("b.jpg", "a.png", "sub/c.jpg", "sub/more/d.jpg", "notes.txt"):
        (web.folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (web.folder / "images" / name).write_bytes(png())
    remote, local = open_source(f"{web.url}/images"), open_source(web.folder / "images")
    assert list(map(brief, remote)) == list(map(brief, local))
    assert remote.root == f"{web.url}/images"
    assert read_bytes(remote.root, Place("sub/c.jpg"), MOST) == png()


# Lists: Parquet, CSV, TSV, JSONL


@pytest.mark.parametrize("kind", LISTS)
def test_every_kind_of_list_says_the_same(tmp_path: Path, kind: str) -> None:
    """Would catch a kind that alters captions, loses a row, or forgets to count the rows without an image."""
    captions = ['a "red", old house', "ein Hund läuft 🐕", "two\nlines", "", " spaces "]
    rows = [{"image": f"d/{n}.jpg", "id": f"n{n}", "caption": caption} for n, caption in enumerate(captions)]
    source = open_source(write_list(tmp_path / f"list.{kind}", [*rows, {"image": None, "id": "x", "caption": "y"}]))
    for _ in range(2):
        assert list(map(brief, source)) == [(row["id"], row["image"], row["caption"]) for row in rows]
        assert source.counts == {"rows without an image": 1}
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
        assert told.startswith("--columns = ")
        assert "image, jpg_url, caption, alt, n" in told


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_without_images_is_refused(tmp_path: Path, kind: str) -> None:
    """Would catch a build of nothing, from a list whose columns pad doesn't know."""
    told = error_of(write_list(tmp_path / f"list.{kind}", [{"image": "a.jpg", "words": "w"}]))
    assert "its columns are: image, words" in told
    assert "--columns image=NAME" in told


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


def test_nan_is_null(tmp_path: Path) -> None:
    """Would catch `nan` as a caption or a failed row: it is how pandas writes a missing value."""
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "a.jpg", "id": NaN, "caption": NaN, "conversations": NaN}\n{"image": NaN}\n')
    source = open_source(path)
    assert list(map(brief, source)) == [("a", "a.jpg", "")]
    assert source.counts == {"rows without an image": 1}


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


def test_an_image_that_is_no_path_is_a_failed_row(tmp_path: Path) -> None:
    """Would catch a traceback for a number, a list or an object, and an id that is lost with it."""
    lines = ['{"image": 3, "id": "n"}', '{"image": ["a.jpg"]}', '{"image": {"bytes": ""}}', '{"image": ""}', '"text"']
    lines += ['{"image": "a.jpg", "caption": ["one", "two"]}', '{"image": "b.jpg", "id": {}}', '{"image": "c.jpg"}']
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
    for text in ('image,caption\na.jpg,"one\nb.jpg,two\n', "image\n" + "x" * 200_000, "", "\n"):
        (tmp_path / "list.csv").write_text(text)
        assert error_of(tmp_path / "list.csv").startswith("--images = ")
    (tmp_path / "list.csv").write_text("image\na\0.jpg\n")
    (planned,) = open_source(tmp_path / "list.csv")
    assert "NUL" in planned.problem


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
    assert "--images = " in error_of(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([png()]),
        pa.array([{"bytes": png(), "path": None}]),
        pa.array([[1, 2]]),
        pa.array([3]),
    ],
    ids=lambda column: str(column.type),
)
def test_images_inside_parquet_are_refused(tmp_path: Path, column: pa.Array) -> None:
    """Would catch ten million failed rows where one line at the start says it: pad wants paths or URLs there."""
    pq.write_table(pa.table({"image": column, "id": ["a"]}), tmp_path / "list.parquet")
    assert "paths or URLs" in error_of(tmp_path / "list.parquet")


def test_parquet_texts_of_every_type(tmp_path: Path) -> None:
    """Would catch a type of text that pandas, polars or Spark writes and pad refuses."""
    names = pa.array(["a.jpg", None])
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"image": names.cast(kind), "caption": names.cast(kind)}), tmp_path / "list.parquet")
        assert list(map(brief, open_source(tmp_path / "list.parquet"))) == [("a", "a.jpg", "a.jpg")]
    pq.write_table(pa.table({"image": names, "caption": pa.array([["one"], None])}), tmp_path / "list.parquet")
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
        assert error_of(path).startswith("--images = ")


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_read_over_http(web: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    """Would catch a kind of list that only works on a disk, and a root that is not the list's own folder."""
    rows = [{"image": f"{n}.jpg", "caption": f"number {n}"} for n in range(50)]
    (web.folder / "d").mkdir()
    path = write_list(web.folder / f"d/list.{kind}", rows)
    source = open_source(f"{web.url}/d/list.{kind}")
    assert list(source) == list(open_source(path))
    assert source.root == f"{web.url}/d"
    assert open_source(f"{web.url}/d/list.{kind}", image_root=tmp_path).root == str(tmp_path)
    assert error_of(f"{web.url}/d/none.{kind}").startswith("--images = ")


# LLaVA JSON


def test_a_llava_json_gives_its_records(tmp_path: Path) -> None:
    """Would catch a record lost or miscounted, and a broken one that stops all others."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    good, text_only = {"id": "1", "image": "a.jpg", "conversations": turns}, {"id": "2", "conversations": turns}
    bad = [
        {"id": "3", "image": ["a.jpg"]},
        {"id": "4", "image": "../a.jpg"},
        {"id": "5", "image": "a.jpg"} | {"conversations": 1},
    ]
    (tmp_path / "llava.json").write_text(json.dumps([good, text_only, *bad, "x"]))
    source = open_source(tmp_path / "llava.json")
    first, *others = source
    assert (*brief(first), list(first.conversations)) == ("1", "a.jpg", "A dog.", turns)
    assert [p.id for p in others] == ["3", "4", "5", "record-5"]
    assert all(p.problem for p in others)
    assert source.counts == {"records without an image": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
SPACES = st.text(" \t\r\n", max_size=3)


def streamed(text: str, window: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "_WINDOW", window)
        return list(llava.stream_list(io.StringIO(text)))


@settings(deadline=None, max_examples=200)
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), SPACES, SPACES, st.integers(1, 12))
@example([1e22, -1.5e-7], None, True, "", "", 3)
@example([{}], None, True, "\n", "\n", 1)
def test_a_streamed_list_is_what_json_reads(
    entries: list[Any], indent: int | None, ascii_only: bool, before: str, behind: str, window: int
) -> None:
    """Would catch an entry that is cut where one window ends and the next begins: a number, an escape, a comma."""
    text = before + json.dumps(entries, indent=indent, ensure_ascii=ascii_only) + behind
    text = text.encode(errors="replace").decode()  # as a file holds it
    assert streamed(text, window) == clean(json.loads(text))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(JSON, max_size=4),
    st.integers(0, 40),
    st.integers(0, 6),
    st.text('[]{},:"\\ 01.eE-tx\0', max_size=2),
    st.integers(1, 12),
)
@example([1, 2], 2, 1, "", 1)
@example([1, 2], 1, 0, ",", 4)
@example([1], 2, 0, ",", 2)
def test_a_broken_list_is_an_error_of_value(entries: list[Any], at: int, cut: int, put: str, window: int) -> None:
    """Would catch text that json.loads refuses and streaming takes, or another error than ValueError."""
    text = json.dumps(entries)
    text = text[:at] + put + text[at + cut :]
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, list):
        assert streamed(text, window) == clean(expected)
    else:
        with pytest.raises(ValueError):
            streamed(text, window)


RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(-(1 << 70), 1 << 70) | st.text(max_size=3) | st.none(),
            "image": st.text("]}, {", max_size=6),
        },
        optional={"conversations": st.lists(st.dictionaries(st.text(max_size=2), st.text("]}{[,", max_size=4)))},
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(RECORDS, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 400))
@example([{"id": number, "image": "]},{"} for number in (1, 2, 1 << 70, 3)], None, True, 400)
@example([{"id": 1}, {"id": 2, "image": "\ud800"}, {"id": 3}], None, True, 400)
def test_records_read_at_once_are_what_json_reads(
    records: list[Any], indent: int | None, ascii_only: bool, window: int
) -> None:
    """Many records of a window are read in one go: would catch one that is cut at what only looks like a record's end,
    one that is lost or comes twice, an id of more than 64 bits that is rounded, half a character that is refused."""
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode(errors="replace").decode()
    assert streamed(text, window) == clean(json.loads(text))


# WebDataset tars


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_tar_offsets_give_exactly_the_members(tmp_path: Path, form: int) -> None:
    """Would catch an offset that forgets the headers of a long name, or a size that holds the padding."""
    folders = ["", "x/", "y" * 90 + "/"] + (["z" * 250 + "/ü"] if form != tarfile.USTAR_FORMAT else [])
    images = {f"{folder}{n}.jpg": bytes([n]) * (510 + n) for folder in folders for n in range(4)}
    write_tar(tmp_path / "tars/a.tar", list(images.items()), form)
    source = open_source(tmp_path / "tars/a.tar")
    planned = list(source)
    assert [p.source for p in planned] == [f"a.tar/{name}" for name in images]
    assert [read_bytes(source.root, Place(p.file, p.at, p.size), MOST) for p in planned] == list(images.values())
    assert source.counts == {}


def test_tar_samples_hold_what_lies_beside_the_image(tmp_path: Path) -> None:
    """Would catch a caption of the neighbor, a key cut at the wrong dot, and an image that is a mask."""
    turns = [{"from": "gpt", "value": "from the turns"}]
    members = [
        ("s.1/000.jpg", b"0"), ("s.1/000.txt", "a dög\n".encode()),
        ("s.1/001.JSON", json.dumps({"id": 17, "caption": "from json"}).encode()), ("s.1/001.PNG", b"1"),
        ("s.1/002.depth.png", b"no"), ("s.1/002.png", b"2"), ("s.1/002.caption", b"two \xff"),
        ("s.1/003.json", json.dumps({"conversations": turns}).encode()), ("s.1/003.webp", b"3"),
        ("s.1/004.cls", b"4"), ("s.1/004.txt", b"no image"),
        ("s.1/005.jpg", b"5"), ("s.1/005.json", b"{broken"),
        ("./s.1/006.left.jpg", b"6"), ("./s.1/006.right.jpg", b"no"),
        ("s.1/._007.jpg", b"of a Mac"), ("README", b"no ending"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = open_source(tmp_path / "a.tar")
    planned = list(source)
    assert [(p.id, p.caption) for p in planned] == [
        ("s.1/000", "a dög"),
        ("17", "from json"),
        ("s.1/002", "two \ufffd"),
        ("s.1/003", "from the turns"),
        ("s.1/005", ""),
        ("s.1/006", ""),
    ]
    read_back = [read_bytes(source.root, Place(p.file, p.at, p.size), MOST) for p in planned]
    assert read_back == [b"0", b"1", b"2", b"3", b"5", b"6"]
    assert [bool(p.problem) for p in planned] == [False, False, False, False, True, False]
    assert source.counts == {
        "samples without an image": 1,
        "more images of the same sample": 2,
        "members without a key or an ending": 2,
    }


def test_a_pattern_of_tars_is_sorted(tmp_path: Path) -> None:
    """Would catch an order that the file system decides, samples that grow together over two tars, and a wrong root."""
    for name in ("d/b/x-1.tar", "d/a/x-0.tar", "d/a/x-1.tar", "d/a/y.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, [("same.jpg", name.encode())])
    source = open_source(f"{tmp_path}/d/*/x-?.tar")
    names = ["a/x-0.tar", "a/x-1.tar", "b/x-1.tar"]
    assert [(p.file, p.source, p.id) for p in source] == [(name, f"{name}/same.jpg", "same") for name in names]
    assert source.root == str(tmp_path / "d")
    assert "no such tar" in error_of(f"{tmp_path}/d/*/z-?.tar")
    assert "no such tar" in error_of(f"{tmp_path}/d/z.tar")
    assert "no such folder" in error_of(f"{tmp_path}/e/*.tar")
    (tmp_path / "d/b/x-1.tar").rename(tmp_path / "d/[x].tar")
    assert [p.file for p in open_source(f"{tmp_path}/d/[x].tar")] == ["[x].tar"]


def test_what_is_no_plain_file_is_not_used(tmp_path: Path) -> None:
    """Would catch a link that is followed out of the tar, and a sparse file whose bytes don't lie in one piece."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        sparse = tarfile.TarInfo("e.jpg")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9", "GNU.sparse.major": "0"}
        sparse.size = 1
        tar.addfile(sparse, io.BytesIO(b"x"))
        good = tarfile.TarInfo("f.jpg")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"f"))
    source = open_source(path)
    assert [p.source for p in source] == ["a.tar/f.jpg"]
    assert source.counts == {"members that are no plain files": 4}


def test_hostile_member_names_are_only_names(tmp_path: Path) -> None:
    """Would catch a member's name that is taken for a place on the disk."""
    names = ["../../x.jpg", "/etc/y.jpg", "a/../../z.jpg", "C:\\w.jpg"]
    write_tar(tmp_path / "tars/a.tar", [(name, name.encode()) for name in names])
    source = open_source(tmp_path / "tars/a.tar")
    planned = list(source)
    assert [p.file for p in planned] == ["a.tar"] * 4
    assert [read_bytes(source.root, Place(p.file, p.at, p.size), MOST).decode() for p in planned] == names
    assert [path.name for path in tmp_path.rglob("*")] == ["tars", "a.tar"]


def test_a_tar_that_ends_early_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """Would catch a download that broke off and passes for whole, and one that takes all others with it."""
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{n}.{ending}", bytes([n]) * 600) for n in range(3) for ending in ("jpg", "txt")])
    write_tar(tmp_path / "b.tar", [("b.jpg", b"b")])
    content = path.read_bytes()
    assert [p.id for p in open_source(path)] == ["0", "1", "2"]
    member = 512 + 1024
    bad_header = content[: 4 * member] + b"\1" * 512 + content[4 * member + 512 :]
    cases = {
        "inside an image": (content[: 2 * member + 700], ["0", "1", "b"]),
        "inside a text": (content[: 3 * member + 700], ["0", "1", "b"]),
        "inside a header": (content[: 4 * member + 100], ["0", "1", "b"]),
        "between members": (content[: 4 * member], ["0", "1", "b"]),
        "a bad header": (bad_header, ["0", "1", "b"]),
    }
    for case, (cut, expected) in cases.items():
        path.write_bytes(cut)
        source = open_source(f"{tmp_path}/*.tar")
        planned = list(source)
        assert [p.id for p in planned] == expected, case
        assert source.counts == {"tars that can't be read to the end": 1}, case
        if case == "inside an image":
            with pytest.raises(BadImage, match="ends inside"):
                read_bytes(source.root, Place(planned[1].file, planned[1].at, planned[1].size), MOST)
        if case == "inside a text":
            assert planned[1].caption == ""


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "evil",
    [
        _header("b.jpg", -1),
        _header("b.txt", -1024),
        _header("b.txt", 1 << 60),
        _header("b.jpg", 1 << 60, tarfile.GNUTYPE_LONGNAME),
        _header("b.jpg", -512, tarfile.XHDTYPE),
        (_header("x", 512, tarfile.XHDTYPE) + b"11 size=-9\n".ljust(512, b"\0")) * 3000,
        _header("x", 512, tarfile.XHDTYPE) + b"20 GNU.sparse.map=x\n".ljust(512, b"\0") + _header("b.jpg", 0),
    ],
    ids=["negative", "backwards", "huge", "huge name", "negative pax", "nested pax", "bad sparse"],
)
def test_a_tar_header_that_lies_ends_the_tar(tmp_path: Path, evil: bytes) -> None:
    """Would catch a header that leads backwards, for ever; that asks for a terabyte; or that makes a traceback."""
    path = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"a")]))
    path.write_bytes(path.read_bytes()[:1024] + evil + bytes(2048))
    source = open_source(path)
    assert [p.id for p in source] == ["a"]
    assert source.counts["tars that can't be read to the end"] == 1


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    """Would catch a compressed tar that yields nothing, and nobody knows why."""
    good = Path(write_tar(tmp_path / "good.tar", [("a.jpg", b"a")])).read_bytes()
    for bad in (gzip.compress(good), b"", b"\1" * 2000, good[:100]):
        (tmp_path / "bad.tar").write_bytes(bad)
        told = error_of(tmp_path / "bad.tar")
        assert "no tar" in told
        assert "gunzip" in told
    (tmp_path / "bad.tar").write_bytes(bytes(1024))
    assert list(open_source(tmp_path / "bad.tar")) == []


def test_tars_are_read_over_http(web: SimpleNamespace) -> None:
    """Would catch offsets that only fit a disk, a pattern that a server's listing doesn't match, and a server without
    ranges that passes for a tar that ends early."""
    for number in range(2):
        members = [(f"{number}.jpg", png(number)), (f"{number}.txt", b"words"), (f"{number}-big.jpg", bytes(100_000))]
        write_tar(web.folder / f"tars/x-{number}.tar", members)
    for pattern in ("tars/x-*.tar", "tars/x-1.tar"):
        remote, local = open_source(f"{web.url}/{pattern}"), open_source(f"{web.folder}/{pattern}")
        planned = list(remote)
        assert planned == list(local)
        assert remote.root == f"{web.url}/tars"
        assert read_bytes(remote.root, Place(planned[0].file, planned[0].at, planned[0].size), MOST) == png(
            int(planned[0].id)
        )
    content = (web.folder / "tars/x-0.tar").read_bytes()
    web.special["/whole.tar"] = lambda handler: handler.answer(content)
    web.special["/stream.tar"] = lambda handler: handler.answer(content, headers={"Accept-Ranges": "none"})
    for name in ("whole", "stream", "none"):
        assert f"{name}.tar: it can't be read" in error_of(f"{web.url}/{name}.tar")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet", "x.tar", "x.json", "folder"])
def test_a_network_that_fails_is_one_line(web: SimpleNamespace, name: str) -> None:
    """Would catch a connection that breaks off as a traceback, or as the end of the list."""
    content = b'[{"image": "a.jpg"},\n' if name == "x.json" else b'{"image": "a.jpg"}\n'
    content = b"image\na.jpg\n" if name == "x.csv" else content
    headers = {"Content-Length": "5000000", "Accept-Ranges": "none"}
    status = 500 if name == "folder" else 200
    web.special[f"/{name}"] = lambda handler: handler.answer(content, status, headers if status == 200 else {})
    assert error_of(f"{web.url}/{name}").startswith("--images = ")


# PAD shards


def test_shards_are_a_source(tmp_path: Path) -> None:
    """Would catch an offset of the wrong member, and a failed row that is annotated again as if it had not failed."""
    from pad_pipeline.geometry import View
    from pad_pipeline.records import ImageRecord, Shard
    from pad_pipeline.shards.run import Run
    from pad_pipeline.shards.writer import write_shard
    from pad_pipeline.storage import Folder

    view = View()
    facts: dict[str, Any] = {"images": 3, "shards": 2, "shard_size": 2, "view": view, "embedding_width": 4}
    run = Run(kind="build", counts={}, settings={}, fingerprints={}, **facts)
    empty = {"coverage": np.zeros((0, view.grid, view.grid), np.uint8), "embeds": np.zeros((0, 4), np.float16)}
    rows = [ImageRecord(key, f"d/{key}", f"d/{key}.png", data=png(n), **empty) for n, key in enumerate("ab")]
    rows[1].fail("decode", "broken")
    run.write(Folder(tmp_path))
    write_shard(Shard(0, rows), Folder(tmp_path), run.identity)
    source = open_source(tmp_path)
    good, failed = source
    assert (good.id, good.source) == ("d/a", "d/a.png")
    assert read_bytes(source.root, Place(good.file, good.at, good.size), MOST) == png(0)
    meta = json.loads(read_bytes(source.root, Place(good.file, good.earlier_at, good.earlier_bytes), MOST))
    assert meta["id"] == "d/a"
    assert "decode: broken" in failed.problem
    assert source.counts == {"shards that are not finished": 1}


# Which source it is


def test_what_can_not_be_a_source_is_refused(tmp_path: Path) -> None:
    """Would catch a traceback for a typing error, an option that is ignored, and a URL that opens local files."""
    for name in ("none", *(f"none.{kind}" for kind in (*LISTS, "json", "tar"))):
        assert "there is no such" in error_of(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert "notes.txt" in error_of(tmp_path / "notes.txt")
    assert error_of(tmp_path, columns={"image": "x"}).startswith("--columns = ")
    assert error_of(tmp_path, image_root=tmp_path).startswith("--image-root = ")
    assert error_of(write_tar(tmp_path / "a.tar", []), image_root=tmp_path).startswith("--image-root = ")
    listed = write_list(tmp_path / "list.csv", [{"image": "a.jpg"}])
    assert error_of(listed, image_root=tmp_path / "none").startswith("--image-root = ")
    for url in (f"file://{listed}", f"zip::file://{listed}", f"local://{listed}", "memory://x/*.tar", "ftp://h/x.json"):
        assert "pad reads" in error_of(url)
        assert "pad reads" in error_of(listed, image_root=url)


# Reading


def test_an_image_is_read_over_http(web: SimpleNamespace) -> None:
    """Would catch a URL that is taken for a path below the root, or bytes that are altered on the way."""
    (web.folder / "a b.png").write_bytes(png(7))
    assert read_bytes("/nowhere", Place(f"{web.url}/a%20b.png"), MOST) == png(7)
    assert read_bytes("/nowhere", Place(f"{web.url}/a%20b.png", 1, 3), MOST) == b"PNG"
    with pytest.raises(BadImage, match="nothing at this URL"):
        read_bytes("/nowhere", Place(f"{web.url}/none.png"), MOST)
    for url in ("file:///etc/passwd", "zip::file:///x.zip", "memory://x", "local:///etc/passwd"):
        with pytest.raises(BadImage, match="pad reads"):
            read_bytes("/nowhere", Place(url), MOST)
        with pytest.raises(BadImage, match="pad reads"):
            read_bytes("/nowhere", Place(url, 0, 4), MOST)


def test_a_file_that_is_too_large_is_not_read_to_its_end(web: SimpleNamespace) -> None:
    """Would catch a URL that fills the memory: one that says its size, one that says none, and one that lies."""
    sent = 0

    def flood(handler: _Handler, headers: dict[str, str]) -> None:
        nonlocal sent
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            try:
                for _ in range(16_000):
                    handler.wfile.write(bytes(1 << 16))
                    sent += 1 << 16
            except OSError:
                return

    web.special["/honest"] = lambda handler: flood(handler, {"Content-Length": str(16_000 << 16)})
    web.special["/silent"] = lambda handler: flood(handler, {})
    web.special["/lying"] = lambda handler: flood(handler, {"Content-Length": "9"} if handler.command == "HEAD" else {})
    for path in ("honest", "silent", "lying"):
        with pytest.raises(BadImage, match="allows 100000"):
            read_bytes("/nowhere", Place(f"{web.url}/{path}"), 100_000)
    assert sent < 100 << 20


def test_a_server_that_breaks_off_is_a_bad_image(web: SimpleNamespace) -> None:
    """Would catch half an image that passes for whole, because the server promised more than it sent."""
    web.special["/half.png"] = lambda handler: handler.answer(png()[:40], headers={"Content-Length": "70"})
    with pytest.raises(BadImage, match="3 tries"):
        read_bytes("/nowhere", Place(f"{web.url}/half.png"), MOST)


def test_a_server_that_is_busy_is_asked_again(web: SimpleNamespace) -> None:
    """Would catch an image lost for good because its server was overloaded for a second."""
    answers = []

    def busy(handler: _Handler) -> None:
        answers.append(503 if len(answers) < 2 else 200)
        handler.answer(png(), answers[-1])

    web.special["/busy.png"] = busy
    assert read_bytes("/nowhere", Place(f"{web.url}/busy.png"), MOST) == png()


def test_a_server_without_ranges_is_a_bad_image(web: SimpleNamespace) -> None:
    """Would catch the beginning of a tar in the place of an image in its middle."""
    web.special["/a.tar"] = lambda handler: handler.answer(bytes(5000))
    with pytest.raises(BadImage):
        read_bytes("/nowhere", Place(f"{web.url}/a.tar", 1000, 10), MOST)


def test_a_local_file_is_read_as_far_as_allowed(tmp_path: Path) -> None:
    """Would catch a folder or a huge file that is read, and a place behind a file's end that gives nothing."""
    (tmp_path / "a.png").write_bytes(png())
    root = str(tmp_path)
    assert read_bytes(root, Place("a.png"), MOST) == png()
    assert read_bytes(root, Place("a.png", 1, 3), MOST) == b"PNG"
    for place, most in ((Place("a.png"), 10), (Place("a.png", 0, 20), 10), (Place("a.png", 9999, 3), MOST)):
        with pytest.raises(BadImage):
            read_bytes(root, place, most)
    for name in ("none.png", ".", "a.png/b.png", "x" * 5000, "a\0.png"):
        with pytest.raises(BadImage):
            read_bytes(root, Place(name), MOST)


# Anything at all


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    turns = [{"from": "gpt", "value": "A dog."}]
    rows = [{"image": f"{n}.jpg", "id": n, "caption": f"number {n}"} for n in range(20)]
    for kind in ("parquet", "csv", "jsonl"):
        write_list(folder / f"a.{kind}", rows)
    (folder / "a.json").write_text(json.dumps([row | {"conversations": turns} for row in rows]))
    write_tar(folder / "a.tar", [(f"{n}.{end}", b'{"id": 1}') for n in range(3) for end in ("jpg", "json", "x" * 200)])
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["jsonl", "csv", "parquet", "tar", "json"]),
    start=st.floats(0, 1),
    cut=st.integers(0, 600),
    junk=st.binary(max_size=600),
    keep=st.booleans(),
)
def test_any_bytes_are_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    originals: dict[str, bytes],
    kind: str,
    start: float,
    cut: int,
    junk: bytes,
    keep: bool,
) -> None:
    """Would catch any traceback that a damaged or hostile file can make, and text that the plan can't hold."""
    good = originals[kind]
    at = int(start * len(good))
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    path.write_bytes(good[:at] + junk + good[at + cut :] if keep else junk)
    try:
        for planned in open_source(path):
            assert isinstance(planned, Planned)
            assert planned.id
            pa.array([planned.id, planned.source, planned.file, planned.caption, planned.problem], pa.string())
            json.dumps(planned.conversations).encode()
    except UserError as error:
        assert "\n" not in str(error)
