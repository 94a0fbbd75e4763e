"""Tars whose arrays or headers are anything, under an index that says that they are right, are named or do no harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pad_pipeline.records import Shard
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder
from tests.shards.builders import FIRST
from tests.shards.children import in_child
from tests.shards.conftest import Runs
from tests.shards.damage import accept_tar, index_rows, mended
from tests.shards.hostile import look, run_of_one


def npy(header: str, content: bytes = b"") -> bytes:
    """A file of numpy's, whose header is anything."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def hostile_arrays(shape: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Members in the place of an array of this shape, by what is wrong with them."""
    size = int(np.prod(shape))

    def described(kind: str, each: int) -> bytes:
        return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}", bytes(each * size))

    for kind, each in (("'<U2'", 8), ("'|S3'", 3), ("'|V1'", 1), ("'<M8[s]'", 8), ("'<c16'", 16), ("'<f8'", 8),
                       ("[('a', '|u1')]", 1), ("'|b1'", 1)):  # fmt: skip
        yield f"of {kind}", described(kind, each)
    for kind in ("()", "'|O'", "'<f8,<('", "'|V1000000000'", "'mine'", "None", "[]", "{}", "5"):
        yield f"of {kind}", described(kind, 0)
    for header in ("(", "{", "'", "(" * 2000, "{'descr': '|u1'", "", "\0", "0" * 9000, "{'descr': '|u1', " * 50):
        yield f"header {header[:9]!r}", npy(header)
    for content in (
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x03\x00",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\3\4",
    ):
        yield repr(content), content


def read_hostile_arrays(good: str, scratch: str) -> None:
    """In a child: shards whose hashes are right and whose masks, or embeddings, are anything."""
    from pad_pipeline.shards import writer

    folder, run, record = run_of_one(good, scratch)
    npy_of = writer._npy
    for array in (record.coverage, record.embeds):
        for what, member in hostile_arrays(array.shape):
            writer._npy = lambda given, array=array, member=member: member if given is array else npy_of(given)
            write_shard(Shard(0, [record]), Folder(folder), run.identity)
            look(folder, f"{array.dtype} {what}", damaged=True)


def test_arrays_of_any_kind_are_named_or_do_no_harm(runs: Runs, tmp_path: Path) -> None:
    """Headers that are no Python, types of text, dates or a gigabyte an entry. Catches exceptions that numpy's parser
    lets through (of `tokenize`, IndexError, SyntaxError, MemoryError), and code that calculates with text."""
    assert in_child(read_hostile_arrays, runs.good, tmp_path / "run") == []


def sized(tar: bytes, at: int, size: int) -> bytes:
    """A tar in which the header before `at` states another size (in base 256, which has room for any)."""
    header = at - tarfile.BLOCKSIZE
    changed = bytearray(tar)
    changed[header + 124 : header + 136] = (size % (1 << 96) | (1 << 95)).to_bytes(12, "big")
    return mended(bytes(changed), [header])


def with_pax(tar: bytes, headers: dict[str, str]) -> bytes:
    """A tar in which the first member has these extended headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=stream, mode="w") as sink:
        for number, info in enumerate(source):
            content = source.extractfile(info).read()  # type: ignore[union-attr]
            info.pax_headers = headers if number == 0 else {}
            sink.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def hostile_tars(tar: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """Tars that state something impossible, by what; `at` is where the content of some member begins."""
    yield "a member before the tar", sized(tar, at, -(1 << 40))
    yield "a member before itself", sized(tar, at, -1024)
    yield "gigabytes", sized(tar, at, 5 << 30)
    yield "exabytes", sized(tar, at, 1 << 61)
    yield "a long name", with_pax(tar, {"path": "a" * 100_000})
    yield "a sparse map of letters", with_pax(tar, {"GNU.sparse.map": "a,b"})
    yield "a sparse map that is not there", with_pax(tar, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    yield "a sparse size of letters", with_pax(tar, {"GNU.sparse.size": "x"})
    yield "sparse exabytes", with_pax(tar, {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 18})
    yield "a member that is followed by itself", sized(tar, at, -512)


def read_hostile_tars(good: str, scratch: str) -> None:
    """In a child: tars that state something impossible, and an index that says that they are what was written."""
    folder, run, record = run_of_one(good, scratch)
    write_shard(Shard(0, [record]), Folder(folder), run.identity)
    tar = (folder / f"{FIRST}.tar").read_bytes()
    for what, changed in hostile_tars(tar, index_rows(folder)[0]["json_at"]):
        (folder / f"{FIRST}.tar").write_bytes(changed)
        accept_tar(folder)
        look(folder, what, damaged=True)


def test_tars_that_state_the_impossible_are_named(runs: Runs, tmp_path: Path) -> None:
    """Members of negative size (Python's tarfile then comes to the same member again, for ever: CVE-2025-8194), of
    exabytes, sparse by headers that make no sense: `pad verify` names the tar, ends, and stays within its memory."""
    assert in_child(read_hostile_tars, runs.good, tmp_path / "run") == []
