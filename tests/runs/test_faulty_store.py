"""A store that hiccups: its answers are asked for again, and an unknown answer is never taken for "no"."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest

from pad_pipeline import retries
from pad_pipeline.miniature.files import World
from pad_pipeline.retries import is_not_found
from pad_pipeline.storage import RemoteFolder, folder_at
from tests.faults import Faults, faulty

Pad = Callable[..., Any]


@pytest.fixture
def faults(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults before the S3 server of `store`. fsspec itself asks once only, and pad without pauses."""
    with faulty(os.environ["AWS_ENDPOINT_URL"]) as (url, found):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(retries, "PAUSE", 0.0)
        fsspec.get_filesystem_class("s3").retries = 1
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield found
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


@pytest.mark.parametrize("status", [503, 500, 0])
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_hiccup_changes_no_answer(folder: RemoteFolder, faults: Faults, name: str, status: int) -> None:
    """Catches an answer that is taken for "there is nothing" because the store was busy once."""
    right = QUESTIONS[name](folder)
    assert right
    for method in ("HEAD", "GET"):
        faults.times(2, status, method, "")
        assert QUESTIONS[name](folder) == right


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
    """Catches a shard that is lost because one upload was refused."""
    for status in (503, 0):
        faults.times(2, status, "PUT", "shard")
        with folder.commit("shard") as partial:
            partial.write_bytes(b"x" * 1000)
        assert folder.read("shard") == b"x" * 1000
        folder.append("shard", b"y")
        assert folder.read("shard") == b"x" * 1000 + b"y"


def test_a_finished_run_is_never_planned_anew_after_a_hiccup(
    pad: Pad, store: str, faults: Faults, world: World, common: list[object]
) -> None:
    """HEAD of run.json fails, once or for ever. Catches a finished run that is overwritten with other settings, exit
    code 0, because "no answer" was taken for "no run"."""
    out = f"{store}/finished"
    build = ["build", "--images", world.images, *common, "--engine", "local", "--limit", 4, "--out", out]
    assert pad(*build).code == 0
    before = folder_at(out).read("run.json")
    other = [*build[:-2], "--view-fit", "crop", *build[-2:]]
    for number in (1, 10**6):
        for status in (503, 403):
            faults.times(number, status, "HEAD", "run.json")
            done = pad(*other)
            assert done.code == 2, done.err
            faults.fault = lambda method, path: None
            assert folder_at(out).read("run.json") == before
    faults.times(10**6, 403, "GET", "run.json")
    done = pad("verify", out)
    assert done.code == 2 and "delete" not in done.err, done.err


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
