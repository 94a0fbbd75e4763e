"""Folders of a store are listed page by page: in the order of a local folder, and in constant memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from benchmarks.bucket import Bucket, served
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources import base
from pad_pipeline.sources.open import open_source
from pad_pipeline.storage import RemoteFolder, folder_at
from tests.runs.conftest import store  # noqa: F401 (a fixture)

NAMES = [
    *("b.jpg", "a.jpg", "a b.jpg", "a+b.jpg", "a%20b.jpg", "a&b<c>.jpg", "Z.jpg", "'q'.jpg", "é.png", "e\u0301.png"),
    *(
        "日本.png",
        "\uff01.png",
        "😀.png",
        ".hidden.jpg",
        "notes.txt",
        "sub/x.jpg",
        "sub/deep/y.jpg",
        "sub/deep/a/z.jpg",
    ),
    *("sub-1/x.jpg", "sub.d/x.jpg", "sub0/x.jpg", ".cache/x.jpg", "é/x.jpg", "😀/x.jpg"),
]
"""In a store `sub-1/` comes before `sub/`, and in a folder `sub` before `sub-1`."""


def fill(bucket: str, names: list[str]) -> None:
    """Put objects of one byte into a bucket of the tests' server. Each over HTTP would take milliseconds."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    for name in names:
        backend.put_object(bucket, name, b"x")


def listed_at_once(files: Any, path: str, below: str = "") -> Iterator[Planned]:
    """The images of a folder by fsspec's whole listing: those of the folder, then those of its subfolders."""
    entries = [entry | {"name": entry["name"].rpartition("/")[2]} for entry in files.ls(path, detail=True)]
    entries = sorted(
        (entry for entry in entries if entry["name"][:1] not in ("", ".")), key=lambda entry: entry["name"]
    )
    for entry in entries:
        if entry["type"] == "file" and not entry["name"].endswith(".txt"):
            name = below + entry["name"]
            yield Planned(name.rpartition(".")[0], name, place=Place("", size=entry["size"]))
    for entry in entries:
        if entry["type"] == "directory":
            yield from listed_at_once(files, f"{path}/{entry['name']}", f"{below}{entry['name']}/")


@pytest.mark.parametrize("at_once", [500_000, 7])
def test_pages_give_the_order_of_the_whole_listing(
    store: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
) -> None:
    """Catches an entry lost or repeated between pages, the order of keys in place of that of names, and names of many
    files that are sorted in another way on the disk than in memory: the plan would differ, and no run could go on."""
    monkeypatch.setattr(base, "_SORTED_AT_ONCE", at_once)
    many = [f"many/{number}.jpg" for number in range(1_050)]
    fill("bucket", [f"odd/{name}" for name in [*NAMES, *many, ""]])
    for name in [*NAMES, *many]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(f"{store}/odd")
    planned = list(source)
    assert planned == list(listed_at_once(fsspec.filesystem("s3"), "bucket/odd"))
    local = open_source(tmp_path)
    assert [one.source for one in planned] == [one.source for one in local]
    assert source.counts == local.counts == {"files that are no images": 1}
    names = dict(folder_at(f"{store}/odd").files())
    assert names == {entry.name: 0 if entry.is_dir() else 1 for entry in tmp_path.iterdir()}
    assert dict(folder_at(f"{store}/odd").files("a")) == dict(folder_at(tmp_path).files("a"))


def test_a_local_folder_is_sorted_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name with a line break, or one that is not UTF-8, that changes on its way through a file."""
    for name in (b"a\nb.jpg", b"\xff.jpg", b"\xee\x80\x80.jpg", "😀.jpg".encode(), b"c.jpg"):
        (tmp_path / os.fsdecode(name)).touch()
    whole = list(open_source(tmp_path))
    monkeypatch.setattr(base, "_SORTED_AT_ONCE", 2)
    assert list(open_source(tmp_path)) == whole and len(whole) == 5


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    """An S3 server with one bucket, whose listing is made up page by page."""
    with served() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        yield Bucket
        fsspec.filesystem("s3").clear_instance_cache()


def test_the_memory_of_a_listing_does_not_grow(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches fsspec's cache of listings, and any list of all objects: 100 million of them took 83 GB."""
    monkeypatch.setattr(base, "_SORTED_AT_ONCE", 1000)
    peaks = []
    for bucket.objects in (1_000, 2_000, 20_000):  # the first opens the connection and imports
        tracemalloc.start()
        assert sum(1 for _ in open_source("s3://bucket/images")) == bucket.objects
        folder = folder_at("s3://bucket/images")
        assert isinstance(folder, RemoteFolder) and sum(1 for _ in folder.files()) == bucket.objects
        assert not folder.file_system.dircache
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1] + 200_000, peaks
