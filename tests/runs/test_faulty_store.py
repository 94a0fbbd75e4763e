"""A store that hiccups: its answers are asked for again, and an unknown answer is never taken for "no"."""

from __future__ import annotations

import os
import random
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline import retries, stores
from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage, DecodeSettings
from pad_pipeline.miniature.files import World
from pad_pipeline.records import Place
from pad_pipeline.retries import StoreError, is_not_found
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources import cells, gzipped, read
from pad_pipeline.sources.open import open_source
from pad_pipeline.stages.decode import Decode
from pad_pipeline.storage import RemoteFolder, folder_at
from tests.faults import CUT, ERROR_200, HALF, HANG, LOST, SHORT, STALE, STALL, TORN, Faults, Rule, faulty

Pad = Callable[..., Any]


@pytest.fixture
def faults(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults before the S3 server of `store`. fsspec itself asks once only, and pad without pauses."""
    with faulty(os.environ["AWS_ENDPOINT_URL"]) as (url, found):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(retries, "PAUSE", 0.0)
        monkeypatch.setattr(stores, "SECONDS", 3.0)
        monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "read_timeout", 0.3)
        monkeypatch.setattr(read, "_readable", {})
        fsspec.get_filesystem_class("s3").retries = 1
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield found
        cells._columns.clear()
        gzipped._streams.clear()
        fsspec.get_filesystem_class("s3").retries = 5
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def folder(store: str, faults: Faults) -> RemoteFolder:
    """A folder of the bucket that holds one object."""
    found = folder_at(f"{store}/faulty")
    assert isinstance(found, RemoteFolder)
    with found.commit("run.json") as partial:
        partial.write_text("content")
    return found


QUESTIONS: dict[str, Callable[[RemoteFolder], object]] = {
    "has": lambda folder: folder.has("run.json"),
    "size": lambda folder: folder.size("run.json"),
    "read": lambda folder: folder.read("run.json"),
    "read_range": lambda folder: folder.read_range("run.json", 1, 4),
    "open": lambda folder: folder.open("run.json").read(),
    "files": lambda folder: list(folder.files()),
    "exists": lambda folder: folder.exists(),
}


@pytest.mark.parametrize("fault", [503, 500, CUT, HANG, HALF, SHORT, STALL, ERROR_200])
def test_a_hiccup_changes_no_answer(folder: RemoteFolder, faults: Faults, fault: int) -> None:
    """Catches an answer that is taken for "there is nothing" because the store was busy once, and half an answer that
    is taken for the whole one."""
    for name, question in QUESTIONS.items():
        right = question(folder)
        assert right
        for method in ("HEAD", "GET"):
            faults.times(1 if fault in (HANG, STALL) else 2, fault, method, "")
            assert question(folder) == right, f"{name} after {method}"
    assert faults.injected.total() > 2


def test_every_wait_for_a_store_has_an_end(
    folder: RemoteFolder, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a request without a time limit: a run that hangs for ever at a store that takes requests and never
    answers, even where its library would wait and ask again for an hour."""
    with monkeypatch.context() as impatient:
        impatient.setattr(stores, "SECONDS", 0.2)
        impatient.setattr(retries, "TRIES", 2)
        impatient.setattr(folder.file_system, "retries", 50)
        faults.fault = lambda method, path: HANG
        for name, question in [*QUESTIONS.items(), ("delete", lambda folder: folder.delete("run.json"))]:
            began = time.monotonic()
            with pytest.raises(StoreError):
                question(folder)
            assert time.monotonic() - began < 20, name
        with pytest.raises(StoreError), folder.commit("run.json") as partial:
            partial.write_text("never")
    faults.rules([])
    assert folder.read("run.json") == b"content"


@pytest.mark.parametrize("status", [503, 403])
@pytest.mark.parametrize("name", QUESTIONS)
def test_no_answer_is_an_error(folder: RemoteFolder, faults: Faults, name: str, status: int) -> None:
    """Catches "no" as the answer of a store that gives none, or that refuses."""
    faults.fault = lambda method, path: status
    with pytest.raises(OSError) as error:
        QUESTIONS[name](folder)
    assert not isinstance(error.value, FileNotFoundError) and not is_not_found(error.value)
    faults.fault = lambda method, path: None
    assert QUESTIONS[name](folder)


def test_what_is_not_there_is_not_there(folder: RemoteFolder, store: str) -> None:
    """Catches an absent object that is an error, so that no run could ever begin."""
    assert not folder.has("other.json") and not folder_at(f"{store}/nowhere").exists()
    assert list(folder_at(f"{store}/nowhere").files()) == []
    folder.delete("other.json")
    with pytest.raises(FileNotFoundError):
        folder.read("other.json")


def test_an_upload_that_fails_once_is_whole(folder: RemoteFolder, faults: Faults) -> None:
    """Catches a shard that is lost because one upload was refused, or of which a half arrived."""
    for fault in (503, CUT, HANG, LOST, TORN):
        faults.injected.clear()
        faults.times(2, fault, "PUT", "shard")
        with folder.commit("shard") as partial:
            partial.write_bytes(b"x" * 1000)
        assert folder.read("shard") == b"x" * 1000 and faults.injected.total() == 2, fault
        folder.append("shard", b"y")
        assert folder.read("shard") == b"x" * 1000 + b"y"


def test_half_an_upload_is_taken_away(folder: RemoteFolder, faults: Faults) -> None:
    """A store that keeps a half of each upload. Catches a torn run.json, which no run could ever get past; and an older
    object that is removed, where the store only shows an old size."""
    faults.rules([Rule(TORN, "PUT", "new.json", 0, 10**6)])
    with pytest.raises(StoreError, match="bytes arrived"), folder.commit("new.json") as partial:
        partial.write_text("a new content")
    assert not folder.has("new.json")
    faults.fault = lambda method, path: ERROR_200 if method == "PUT" else None
    with pytest.raises(StoreError), folder.commit("run.json") as partial:
        partial.write_text("another, longer content")
    assert folder.read("run.json") == b"content"


def test_an_upload_in_parts_that_fails_once_is_whole(
    folder: RemoteFolder, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 may answer 200 to the end of an upload in parts, with an error in the answer. Catches a tar that is taken for
    uploaded, and was not."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    content = random.Random(1).randbytes(11 << 20)
    for fault, method, part in (
        (ERROR_200, "POST", "uploadId"),
        (503, "PUT", "partNumber=2"),
        (503, "POST", "uploads"),
    ):
        faults.times(1, fault, method, part)
        with folder.commit("large.tar") as partial:
            partial.write_bytes(content)
        assert folder.read("large.tar") == content and faults.injected.total() > 0
        faults.injected.clear()
        folder.delete("large.tar")


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "tar.gz", "parquet"])
def test_images_are_the_same_after_hiccups(world: World, store: str, faults: Faults, tmp_path: Path, kind: str) -> None:
    """Planning and reading, with a fault at every second request. Catches a list or a tar that ends where an answer was
    cut, an image that is half there, and a source that gives up at the first hiccup."""
    images = sorted(world.images.iterdir())
    files, name = fsspec.filesystem("s3"), {"folder": "images", "list": "list.json"}.get(kind, f"world.{kind}")
    if kind in ("folder", "list"):
        files.put(str(world.images), f"bucket/hiccups-{kind}/images", recursive=True)
        files.put(str(world.llava), f"bucket/hiccups-{kind}/list.json")
    elif kind == "parquet":
        column = [{"bytes": one.read_bytes(), "path": one.name} for one in images]
        pq.write_table(pa.table({"image": column}), tmp_path / name, row_group_size=4)
    else:
        with tarfile.open(tmp_path / name, "w:gz" if "gz" in kind else "w") as tar:
            for one in images:
                tar.add(one, one.name)
    if (tmp_path / name).exists():
        files.put(str(tmp_path / name), f"bucket/hiccups-{kind}/{name}")
    following = cycle([503, None, HALF, None, SHORT, None, STALL, None, CUT, None])
    faults.fault = lambda method, path: next(following) if method == "GET" else None
    root = f"{store}/hiccups-{kind}"
    source = open_source(f"{root}/{name}", f"{root}/images" if kind == "list" else None)
    found = [one.place if one.place.file else Place(one.source) for one in source]
    assert [read.read_bytes(source.root, place, 1 << 30) for place in found] == [one.read_bytes() for one in images]
    assert len(faults.injected) > 2


@pytest.mark.parametrize("fault", [503, CUT, HANG, SHORT])
def test_an_outage_is_no_fault_of_an_image(
    world: World, store: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """A process that has read nothing yet. Catches images that become failed rows one after another, up to the breaker
    in each new process, because the store is down; and one broken object that stops a run of millions."""
    fsspec.filesystem("s3").put(str(world.images), "bucket/outage", recursive=True)
    if fault == HANG:
        monkeypatch.setattr(stores, "SECONDS", 0.5)
    monkeypatch.setattr(retries, "TRIES", 2)
    root, first, second = f"{store}/outage", *(Place(one.name) for one in sorted(world.images.iterdir())[:2])
    faults.fault = lambda method, path: (fault if method == "GET" else 503) if fault == SHORT else fault
    with pytest.raises(UserError, match="gives no answer, neither about this file nor about its folder"):
        read.read_bytes(root, first, 1 << 30)
    faults.fault = lambda method, path: fault if first.file in path else None
    for _ in range(2):  # without a file that was read before, and with one
        with pytest.raises(BadImage, match="it can't be fetched, in 10 tries"):
            read.read_bytes(root, first, 1 << 30)
        assert read.read_bytes(root, second, 1 << 30)


def test_a_refusal_is_asked_for_once_more(world: World, store: str, faults: Faults) -> None:
    """A private object in a store that is well. Catches a second look at the store, and an image that is set aside, or
    a hash that is missing in run.json, because of a refusal of a moment."""
    fsspec.filesystem("s3").put(str(world.images), "bucket/refused", recursive=True)
    first, second = (Place(one.name) for one in sorted(world.images.iterdir())[:2])
    assert read.read_bytes(f"{store}/refused", first, 1 << 30)
    faults.fault = lambda method, path: 403 if second.file in path else None
    faults.seen.clear()
    with pytest.raises(BadImage, match="it may not be read"):
        read.read_bytes(f"{store}/refused", second, 1 << 30)
    assert [method for method, path in faults.seen if first.file in path] == ["HEAD", "GET"]
    refusals = iter([403])
    faults.fault = lambda method, path: next(refusals, None) if second.file in path else None
    assert read.read_bytes(f"{store}/refused", second, 1 << 30)
    for refused in ("HEAD", "GET"):  # of every file, for a while, and the other kind of request is answered
        faults.fault = lambda method, path, refused=refused: 403 if method == refused else None  # type: ignore[misc]
        with pytest.raises(UserError, match="no longer gives this file, and no other"):
            read.read_bytes(f"{store}/refused", second, 1 << 30)


def test_a_new_worker_knows_what_others_could_read(store: str, faults: Faults, world: World) -> None:
    """Credentials that end, and a worker that begins afterwards. Catches images that it sets aside as private ones."""
    fsspec.filesystem("s3").put(str(world.images), "bucket/ended", recursive=True)
    first, second = (Place(one.name) for one in sorted(world.images.iterdir())[:2])
    assert read.read_bytes(f"{store}/ended", first, 1 << 30)
    known = read.witnesses()
    read._readable.clear()
    Decode(DecodeSettings(), f"{store}/ended", witnesses=known)
    faults.fault = lambda method, path: 403
    with pytest.raises(UserError, match="no longer gives this file"):
        read.read_bytes(f"{store}/ended", second, 1 << 30)


@pytest.fixture
def finished(pad: Pad, store: str, faults: Faults, imported: list[object]) -> str:
    """A finished run in the bucket."""
    out = f"{store}/whole"
    assert pad(*imported, "--engine", "local", "--shard-size", 4, "--out", out).code == 0
    return out


def test_an_outage_is_never_taken_for_damage(
    pad: Pad, finished: str, faults: Faults, imported: list[object], tmp_path: Path
) -> None:
    """Indexes or tars that are not given, 503 or 403. Catches `pad verify` that reports damage, a resume that deletes
    the indexes and makes the shards again, and a rewrite that sets every image aside."""
    again = [*imported, "--engine", "local", "--shard-size", 4, "--out", finished]
    before = {name: size for name, size in folder_at(finished).files() if name.startswith("pad-")}
    for command, part in (
        (["verify", finished], ".parquet"), (["verify", finished, "--deep"], ".tar"), (again, "pad-000001.parquet"),
        (["stats", finished], "pad-000001.parquet"),
        (["retarget", finished, "--fit", "pad", "--engine", "local", "--out", tmp_path / "padded"], ".tar"),
        (["export", "parquet", finished, "--out", tmp_path / "table"], ".tar"),
    ):  # fmt: skip
        for status in (503, 403):
            faults.fault = lambda method, path, status=status, part=part: (  # type: ignore[misc]
                status if method == "GET" and part in path and "whole/pad-" in path else None
            )
            done = pad(*command)
            assert done.code == 2, (command, done.err)
            (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
            assert "its store gives no answer" in line and "damaged" not in line, line
            faults.rules([])
    assert {name: size for name, size in folder_at(finished).files() if name.startswith("pad-")} == before
    assert not list((tmp_path / "padded").glob("pad-*.parquet"))


def test_a_stale_listing_hides_no_shard(
    pad: Pad, finished: str, faults: Faults, imported: list[object], tmp_path: Path
) -> None:
    """A listing that lacks objects. Catches a tar that is deleted as left over, and a training or an export that leaves
    out a shard without a word."""
    again = [*imported, "--engine", "local", "--shard-size", 4, "--out", finished]
    names = open_shards(finished).names
    list(folder_at(finished).files())
    lost = rb"<Contents><Key>whole/pad-00000(?:1.tar|2.parquet)</Key>.*?</Contents>"
    faults.listings = {path: re.sub(lost, b"", answer) for path, answer in faults.listings.items()}
    faults.fault = lambda method, path: STALE if "list-type" in path else None
    listed = {name for name, _ in folder_at(finished).files()}
    assert "pad-000001.parquet" in listed and not {"pad-000001.tar", "pad-000002.parquet"} & listed
    assert open_shards(finished).names == names and len(names) == 3
    faults.seen.clear()
    assert "3 of 3 shards are finished already" in pad(*again).err
    assert not [path for method, path in faults.seen if method == "DELETE" and "pad-" in path]


def test_a_finished_run_is_never_planned_anew_after_a_hiccup(
    pad: Pad, store: str, faults: Faults, world: World, common: list[object]
) -> None:
    """HEAD of run.json fails, once or for ever. Catches a finished run that is overwritten with other settings, exit
    code 0, because "no answer" was taken for "no run"."""
    out = f"{store}/finished"
    build = ["build", "--images", world.images, *common, "--engine", "local", "--limit", 4, "--out", out]
    assert pad(*build).code == 0
    before = folder_at(out).read("run.json")
    other = [*build[:-2], "--fit", "pad", *build[-2:]]
    for number in (1, 10**6):
        for status in (503, 403):
            faults.injected.clear()
            faults.times(number, status, "HEAD", "run.json")
            done = pad(*other)
            assert faults.injected.total() and done.code == 2, done.err
            wrong = "view.fit" if (number, status) == (1, 503) else "its store gives no answer"
            assert wrong in done.err, (number, status, done.err)
            faults.fault = lambda method, path: None
            assert folder_at(out).read("run.json") == before
    faults.times(10**6, 403, "GET", "run.json")
    faults.injected.clear()
    done = pad("verify", out)
    assert faults.injected.total() and done.code == 2 and "delete" not in done.err, done.err


def test_an_index_that_is_not_given_is_not_damaged(
    pad: Pad, store: str, faults: Faults, imported: list[object]
) -> None:
    """A resume reads the end of each index. Catches a finished shard that is deleted and made again because the store
    did not give its index."""
    out = f"{store}/unread"
    command = [*imported, "--shard-size", 2, "--engine", "local", "--out", out]
    assert pad(*command).code == 0
    before = dict(folder_at(out).files())
    faults.fault = lambda method, path: 403 if method == "GET" and path.endswith("pad-000001.parquet") else None
    refused = pad(*command)
    faults.fault = lambda method, path: None
    assert refused.code == 2 and "damaged" not in refused.err, refused.err
    assert dict(folder_at(out).files()) == before
    assert "5 of 5 shards are finished already" in pad(*command).err
