"""`pad report` takes little memory, refuses in one line, and leaves no half report that opens as if it were whole."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.report import site
from pad_pipeline.report.cards import Card, make_card
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME
from tests.sharing.conftest import Pad
from tests.sharing.report_files import cards_of, content


def test_memory_does_not_grow_with_the_run(
    pad: Pad, mixed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 75 images, few are taken from the shards ahead of those that are written. Catches a report that is gathered
    before it is written, and threads that run ahead of the disk."""
    large = tmp_path / "large"
    large.mkdir()
    facts = json.loads((mixed_run / RUN_NAME).read_text()) | {"images": 75, "shards": 15}
    (large / RUN_NAME).write_text(json.dumps(facts))
    for number in range(15):
        for ending in ("tar", "parquet"):
            os.link(mixed_run / f"pad-{number % 2:06d}.{ending}", large / f"pad-{number:06d}.{ending}")
    taken: list[bool] = []
    ahead: list[int] = []

    def watched(shards: ShardFolder, name: str, row: dict[str, Any], edge: int) -> Card:
        taken.append(row["status"] != "failed")
        ahead.append(sum(taken) - len(list((tmp_path / "r/images").rglob("*.jpg"))))
        return make_card(shards, name, row, edge)

    monkeypatch.setattr(site, "make_card", watched)
    done = pad("report", large, "--out", tmp_path / "r", "--workers", 1)
    assert done.code == 0 and "75 images" in done.out, done.err
    assert 0 < max(ahead) <= 2 * 8 + 1


def test_a_shard_with_fewer_rows_than_planned_is_damaged(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """The numbers of later images follow from the plan. Catches copies of images that stand beside others' cards."""
    run = tmp_path / "run"
    shutil.copytree(mixed_run, run)
    for ending in ("tar", "parquet"):
        shutil.copy(run / f"pad-000002.{ending}", run / f"pad-000000.{ending}")
    assert "pad-000000.parquet: it lists 3 images, but 5 are planned" in pad("report", run, "--out", tmp_path / "r").err


def test_report_refuses_in_one_line(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Field, value, rule, remedy; and nothing of somebody else's is touched."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.doc").write_text("mine")
    (tmp_path / "file").write_text("x")
    for arguments, told in (
        ([mixed_run, "--out", mine], "out = .*holds something else .thesis.doc. and no .pad-report; name another"),
        ([mixed_run, "--out", mixed_run], "out = .*holds something else"),
        ([mixed_run, "--out", tmp_path / "file"], "this is a file"),
        ([mixed_run, "--out", "s3://bucket/report"], "a report opens from disk"),
        ([mixed_run, "--out", "/proc/report"], "can't be written"),
        ([tmp_path / "nowhere", "--out", tmp_path / "r"], "there is no run.json"),
    ):
        done = pad("report", *arguments)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert re.search(told, done.err), done.err
    assert (mine / "thesis.doc").read_text() == "mine" and not (tmp_path / "r").exists()


def test_a_report_that_was_broken_off_is_made_anew(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Half a report does not open as if it were whole, and the same command finishes it."""
    shards, report = tmp_path / "shards", tmp_path / "r"
    shutil.copytree(mixed_run, shards)
    assert pad("report", shards, "--out", report, "--page-size", 2).code == 0
    whole = (shards / "pad-000002.tar").read_bytes()
    (shards / "pad-000002.tar").write_bytes(whole[:2000])
    broken = pad("report", shards, "--out", report, "--page-size", 2)
    assert broken.code == 2 and "pad-000002.tar: it is damaged" in broken.err, broken.err
    assert (report / "data/page-000000.js").exists() and not (report / "index.html").exists()
    (shards / "pad-000002.tar").write_bytes(whole)
    assert pad("report", shards, "--out", report, "--page-size", 2).code == 0
    assert len(cards_of(report)) == 13 and (report / "index.html").exists()


def test_open_opens_the_written_report(
    pad: Pad, mixed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a browser that is sent to the folder, or to another report."""
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert pad("report", mixed_run, "--out", tmp_path / "r", "--limit", 1, "--open").code == 0
    assert opened == [str(tmp_path / "r/index.html")]


def test_odd_names_of_runs_are_quoted_and_distinct(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """A folder whose name has markup and a shell's signs stands quoted in the printed command, and is only text on the
    page. Two runs whose folders have one name are shown with their paths. Catches a shell that runs a folder's name."""
    first, second = tmp_path / "a" / "it's <b>$(x)", tmp_path / "b" / "it's <b>$(x)"
    for folder in (first, second):
        shutil.copytree(mixed_run, folder)
    assert pad("report", first, second, "--out", tmp_path / "r", "--limit", 1).code == 0
    facts = content(tmp_path / "r", "facts")
    assert shlex.split(f"{facts['run']} {facts['sure']}") == [str(first), f"{first}-sure"]
    assert facts["names"] == [str(first), str(second)]
    page = (tmp_path / "r/index.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;$(x)" in page
