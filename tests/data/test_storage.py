"""Output folders: what is in use is refused, and files and folders are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.facts import differences
from pad_pipeline.storage import PROCESS_TOKEN, Folder, atomic_write, claim_folder, store_of


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_breaks_off_changes_nothing(tmp_path: Path, kind: str, durable: bool) -> None:
    """A checkpoint over one of the same step, a cache folder over a damaged one: replaced by a whole one or kept."""
    target = tmp_path / "target"

    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
        (path / "state" if kind == "folder" else path).write_text(text)

    def read() -> str:
        return (target / "state" if kind == "folder" else target).read_text()

    for text in ("one", "two"):
        with atomic_write(target, durable) as partial:
            write(partial, text)
        assert read() == text
        with pytest.raises(_KilledError), atomic_write(target, durable) as partial:
            write(partial, "three")
            raise _KilledError
        assert read() == text and [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_link_under_the_unfinished_name_is_not_written_into(tmp_path: Path) -> None:
    """It may be a hard link to a shard of the run, left by an export that was killed."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".out.{PROCESS_TOKEN}.partial").hardlink_to(tmp_path / "mine")
    with atomic_write(tmp_path / "out") as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "out").read_text() == "new"


def test_what_the_dead_left_goes_by_name_or_all(tmp_path: Path) -> None:
    """Two downloads into one cache folder: one must not remove what the other is at."""
    for name in (".a.0123456789ab.partial", ".b.0123456789ab.partial", ".a.partial", "a"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".a.ba9876543210.partial").mkdir()
    (tmp_path / ".a.ba9876543210.partial/state").write_text("x")
    Folder(tmp_path).clean("a")
    assert {path.name for path in tmp_path.iterdir()} == {".b.0123456789ab.partial", ".a.partial", "a"}
    Folder(tmp_path).clean()
    assert {path.name for path in tmp_path.iterdir()} == {".a.partial", "a"}


def test_a_folder_in_use_is_refused_and_ones_own_is_not(tmp_path: Path) -> None:
    """New, empty, with nothing but a dead process's leftovers, or with the mark: all others are named."""
    claim_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    claim_folder(tmp_path / "new", ".mark", "mine\n")
    assert (tmp_path / "new/.mark").read_text() == "mine\n"
    claim_folder(tmp_path / "new", ".mark")
    claim_folder(tmp_path / "new", hidden=False)
    with pytest.raises(UserError, match=r"holds something else \(\.mark\); name another `out`"):
        claim_folder(tmp_path / "new")
    with pytest.raises(UserError, match=r"fork = .*holds something else \(\.mark\) and no x; name another `fork`"):
        claim_folder(tmp_path / "new", "x", field="fork")
    with pytest.raises(UserError, match="this is a file"):
        claim_folder(tmp_path / "new/.mark")
    (tmp_path / "left").mkdir()
    (tmp_path / "left/.training.json.0123456789ab.partial").write_text("{")
    claim_folder(tmp_path / "left")


def test_a_store_is_a_bucket_or_a_repository() -> None:
    """Catches all data sets of the hub in one store, though their owners' consents differ."""
    stores = {
        "s3://bucket/a/b.png": "s3://bucket", "gs://bucket": "gs://bucket", "hf://lab/model/a.png": "hf://lab/model",
        "hf://datasets/lab/set/a.png": "hf://datasets/lab/set", "https://host/a.png": "", "http://host": "", "a/b": "",
    }  # fmt: skip
    assert {url: store_of(url) for url in stores} == stores


def test_facts_that_differ_are_named() -> None:
    """Nested settings by their dotted name; what one side lacks, and what is no dictionary at all."""
    old, new = {"a": {"b": 1, "c": None}, "d": [1]}, {"a": {"b": 2}, "d": [1], "e": 3}
    assert differences(old, new) == ["a.b: 1 -> 2", "e: absent -> 3"]
    assert differences(old, new, {"a.b"}) == ["e: absent -> 3"]
    assert differences(None, {"a": 1}) == ["a: absent -> 1"]
    assert differences([1], {}) == [": [1] -> absent"]
