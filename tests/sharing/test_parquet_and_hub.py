"""Exports as Parquet and for the hub hold every region once, and do no harm to the run that they are made from."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationDelete, HfApi

from pad_pipeline.storage import PROCESS_TOKEN
from tests.conftest import data
from tests.sharing.conftest import Pad
from tests.sharing.regions import found


def test_parquet_has_a_row_for_each_region(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Every region once, with the numbers of the shards."""
    from pycocotools import mask as coco_mask

    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    rows = pq.read_table(tmp_path / "out/regions.parquet").to_pylist()
    expected = [(name, region) for name, (_, _, regions) in found(built).items() for region in regions]
    assert [(row["id"], row["label"], row["rle"]) for row in rows] == [
        (name, region["label"], region["rle"]["counts"]) for name, region in expected
    ]
    for row, (_, region) in zip(rows, expected, strict=True):
        assert np.allclose([row[edge] for edge in ("x0", "y0", "x1", "y1")], region["box"])
        assert row["score"] == pytest.approx(region["score"])
        assert row["area"] == coco_mask.decode(region["rle"]).sum()


def test_datasets_opens_the_hub_repository(built: Path, pad: Pad, tmp_path: Path) -> None:
    """The card says where the shards are, so `load_dataset` needs the folder alone; and the folder is a run still."""
    from datasets import load_dataset

    done = pad("export", "hub", built, "--name", "Mine", "--license", "cc-by-4.0", "--out", tmp_path / "hub")
    assert done.code == 0, done.err
    samples = load_dataset(str(tmp_path / "hub"), split="train", streaming=True)
    assert {sample["json"]["id"] for sample in samples} == set(found(built))
    card = (tmp_path / "hub/README.md").read_text()
    assert "license: cc-by-4.0" in card and "# Mine" in card
    assert "| images | 11 (" in card
    assert pad("verify", tmp_path / "hub").code == 0


@pytest.fixture
def part(built: Path, pad: Pad, tmp_path: Path) -> Path:
    """Another run, of one shard."""
    assert pad("filter", built, "--status", "ok", "--limit", 2, "--out", tmp_path / "part").code == 0
    return tmp_path / "part"


def test_a_second_hub_export_is_of_the_second_run_alone(built: Path, part: Path, pad: Pad, tmp_path: Path) -> None:
    """Shards of the first stayed, and the card's pattern loaded both as one dataset. What others put there stays, and
    a run is not exported onto itself, for its run.json would go first."""
    from datasets import load_dataset

    out = tmp_path / "hub"
    assert pad("export", "hub", built, "--out", out).code == 0
    (out / "notes.md").write_text("mine")
    (out / ".pad-000002.tar.0123456789ab.partial").write_bytes(b"of an export that was killed")
    assert pad("export", "hub", part, "--out", out).code == 0
    names = {"pad-000000.tar", "pad-000000.parquet", "run.json", "plan.parquet", "README.md", ".pad-export", "notes.md"}
    assert {path.name for path in out.iterdir()} == names
    assert {sample["json"]["id"] for sample in load_dataset(str(out), split="train", streaming=True)} == set(
        found(part)
    )
    assert pad("verify", out).code == 0
    before = data(out)
    refused = pad("export", "hub", out, "--out", out)
    assert refused.code == 2 and "it holds the shards that are exported" in refused.err
    assert data(out) == before


def test_half_a_hub_export_is_no_run(built: Path, part: Path, pad: Pad, tmp_path: Path) -> None:
    """One that breaks off over an earlier one left the earlier one's run.json and card beside shards of both."""
    out = tmp_path / "hub"
    assert pad("export", "hub", part, "--out", out).code == 0
    broken = tmp_path / "broken"
    shutil.copytree(built, broken)
    (broken / "pad-000001.tar").write_bytes(b"")
    assert pad("export", "hub", broken, "--out", out).code == 2
    assert pad("stats", out).code == 2 and not (out / "README.md").exists()
    assert pad("export", "hub", built, "--out", out).code == 0
    assert pad("verify", out).code == 0


def test_a_killed_hub_export_does_not_endanger_the_run(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Killed between link and rename, it left a partial that is the run's own tar; the next one could not link over it,
    and truncated it to copy the tar onto itself."""
    run, out = tmp_path / "run", tmp_path / "hub"
    shutil.copytree(built, run)
    before = data(run)
    assert pad("export", "hub", run, "--out", out).code == 0
    for name in ("pad-000000.tar", "pad-000000.parquet", "run.json", "plan.parquet"):
        (out / name).unlink()
        os.link(run / name, out / f".{name}.{PROCESS_TOKEN}.partial")
    assert pad("export", "hub", run, "--out", out).code == 0
    assert data(run) == before
    assert {name: data(out)[name] for name in before} == before
    assert not list(out.glob("*.partial"))


def test_what_people_mend_in_a_hub_export_is_not_the_runs(built: Path, pad: Pad, tmp_path: Path) -> None:
    """run.json and plan.parquet were the run's own files under another name: whoever took his paths out of them before
    he published took them out of the run. Tars, which are large, are linked."""
    run, out = tmp_path / "run", tmp_path / "hub"
    shutil.copytree(built, run)
    before = data(run)
    assert pad("export", "hub", run, "--out", out).code == 0
    for path in out.iterdir():
        if path.suffix == ".tar":
            assert path.samefile(run / path.name)
        else:
            path.write_bytes(b"mended in place")
    assert data(run) == before


def test_where_files_cant_be_linked_they_are_copied(
    built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another disk."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert pad("export", "hub", built, "--out", tmp_path / "hub").code == 0
    assert not (tmp_path / "hub/pad-000000.tar").samefile(built / "pad-000000.tar")
    assert pad("verify", tmp_path / "hub").code == 0


class Repository(HfApi):
    """Stands in for the hub: one repository in memory. What `upload_folder` sends, and what it deletes, is decided by
    the hub's own client; its requests alone are answered here."""

    held: ClassVar[dict[str, bytes]] = {}

    def create_repo(self, repo_id: str, **_: Any) -> None:  # type: ignore[override]
        assert repo_id == "me/mine"

    def list_repo_files(self, *_: Any, **__: Any) -> list[str]:  # type: ignore[override]
        return list(self.held)

    def _validate_yaml(self, content: str, **_: Any) -> None:  # type: ignore[override]
        assert content.startswith("---\n")

    def create_commit(self, *_: Any, operations: Any, **__: Any) -> None:  # type: ignore[override]
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del self.held[operation.path_in_repo]
            else:
                self.held[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()


def test_a_push_is_of_the_second_run_alone(
    built: Path, part: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of the first stayed in the repository, and were loaded with those of the second. Here a stand-in for the
    hub's client is asked (`Repository`), and no server. What others put there stays; our mark is not sent. And the card
    said OWNER/NAME whatever the repository's name."""
    monkeypatch.setattr("huggingface_hub.HfApi", Repository)
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False, raising=False)
    monkeypatch.setattr(Repository, "held", {"LICENSE": b"theirs", ".gitattributes": b"theirs"})
    refused = pad("export", "hub", built, "--out", tmp_path / "hub", "--push", "mine")
    assert refused.code == 2 and "OWNER/NAME" in refused.err and not Repository.held.get("run.json")
    for run in (built, part):
        out = tmp_path / f"hub-of-{run.name}"
        done = pad("export", "hub", run, "--out", out, "--push", "me/mine")
        assert done.code == 0 and "https://huggingface.co/datasets/me/mine" in done.out, done.err
        sent = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".pad-export"}
        assert Repository.held == sent | {"LICENSE": b"theirs", ".gitattributes": b"theirs"}
        assert b'load_dataset("me/mine", ' in sent["README.md"]
