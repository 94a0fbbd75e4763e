"""The four steps before a run works, each by itself: look, plan, join, tidy up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import World
from pad_pipeline.records import Planned
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.prepare import earlier_run, inherit_facts, prepare, remove_unfinished
from pad_pipeline.workflows.runs.resume import Scan
from pad_pipeline.workflows.runs.spec import RunSpec
from tests.runs.conftest import Pad
from tests.shards.builders import Listed, a_run

OPTIONS = RunOptions(shard_size=2, depth="names")


def spec(**settings: Any) -> RunSpec:
    """Of a run without stages."""
    return RunSpec("build", View(size=28, patch=14), 3, settings, {}, lambda folder, identity, images, threads: [])


def listed(*names: str, problem: str = "") -> Listed:
    return Listed([Planned(name, f"{name}.png", problem=problem) for name in names])


def test_a_new_folder_has_no_earlier_run(tmp_path: Path) -> None:
    assert earlier_run(Folder(tmp_path)) == (None, Scan())


def test_an_earlier_run_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Catches a run.json that somebody edited so that other settings seem to be those of the finished shards."""
    a_run(settings={"a": 1}).write(Folder(tmp_path))
    earlier, found = earlier_run(Folder(tmp_path))
    assert earlier and earlier.settings == {"a": 1} and found == Scan()
    text = (tmp_path / RUN_NAME).read_text()
    (tmp_path / RUN_NAME).write_text(text.replace('"a": 1', '"a": 2'))
    with pytest.raises(UserError, match=r"out = .*run.json: it was changed"):
        earlier_run(Folder(tmp_path))


def test_a_file_that_could_not_be_read_once_makes_no_run_unresumable() -> None:
    """A store gave no answer while the run was planned, or planned again. Catches "its shards were made with something
    else" for ever, and a known hash that such a resume forgets, so that a later change goes unnoticed."""
    code = {"code": "1+a"}
    first = a_run(fingerprints=code, contents={"a": "1", "b": "", "c": "3"})
    again = a_run(fingerprints=code, contents={"a": "1", "b": "2", "c": ""})
    assert first.differences(again) == again.differences(first) == []
    resumed = inherit_facts(first, again)
    assert resumed.contents == {"a": "1", "b": "2", "c": "3"}
    assert resumed.differences(a_run(fingerprints=code, contents={"a": "1", "b": "2", "c": "4"})) == [
        "contents.c: 3 -> 4"
    ]


def test_what_the_earlier_run_was_made_with_stays_said() -> None:
    """Catches a resume after which run.json claims that all shards were made with today's code and libraries."""
    old = a_run(fingerprints={"code": "1+a"}, environment={"torch": "1"}, accepted_code=["0+b"])
    new = a_run(fingerprints={"code": "2+c"}, environment={"torch": "2"})
    both = inherit_facts(old, new)
    assert (both.accepted_code, both.environment) == (["0+b", "1+a"], {"torch": "1"})
    assert both.fingerprints == {"code": "2+c"}
    assert inherit_facts(old, old).accepted_code == ["0+b"]


def test_other_threads_are_said_with_a_remedy_and_only_where_shards_are_made(
    common: list[object], world: World, pad: Pad, tmp_path: Path
) -> None:
    """Catches a run of which some shards have other last digits unsaid, and a note that alarms for a finished run."""
    command = ["build", "--images", world.images, *common[:4], "--limit", 4, "--shard-size", 2, "--engine", "local"]
    assert pad(*command, "--threads", 1, "--out", tmp_path).code == 0
    assert "environment" not in pad(*command, "--threads", 2, "--out", tmp_path).err
    (tmp_path / "pad-000001.parquet").unlink()
    said = " ".join(pad(*command, "--threads", 2, "--out", tmp_path).err.split())
    assert "note: the environment has changed since the run began (threads: 1 -> 2)" in said
    assert "with --threads 1 they do not differ for that." in said
    parts = [*command, "--out", tmp_path / "parts", "--part"]
    assert pad(*parts, "1/2", "--threads", 1).code == 0
    assert "(threads: 1 -> 2)" in pad(*parts, "2/2", "--threads", 2).err, "also of shards that another part made"


def test_only_what_was_never_committed_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a tidying that takes a finished shard along."""
    names = [f"pad-00000{n}.{ending}" for n in range(3) for ending in ("tar", "parquet")]
    for name in names[:5]:
        (tmp_path / name).write_bytes(b"")
    remove_unfinished(
        Folder(tmp_path), Scan(finished={0}, damaged=["pad-000001"], uncommitted_files=["pad-000002.tar"])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pad-000000.parquet",
        "pad-000000.tar",
        "pad-000001.tar",
    ]
    assert "damaged shards that are made again: 1 (pad-000001)." in capsys.readouterr().err


def test_a_run_is_made_once_and_complete(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    run, found = prepare(spec(a=1), listed("x", "y", "z"), folder, OPTIONS)
    assert (run.images, run.shards, run.shard_size, found) == (3, 2, 2, Scan())
    assert {"inputs", "code"} <= run.fingerprints.keys() and run.plan and run.environment
    assert earlier_run(folder)[0] == run
    with pytest.raises(ValueError, match="frozen"):
        run.images = 4


def test_a_refused_plan_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """Catches a plan that is put in place before it was compared."""
    folder = Folder(tmp_path)
    prepare(spec(), listed("x"), folder, OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="there is no image"):
        prepare(spec(), listed(), folder, OPTIONS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match=r"retry_failed = .*: there is no run in it"):
        prepare(spec(), listed("x"), Folder(tmp_path / "new"), RunOptions(retry_failed=True))
    assert json.loads(before[RUN_NAME])["images"] == 1


def test_of_two_parts_that_begin_at_once_the_first_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found no run. Catches a run.json that the second one replaces, while the first works with its own settings;
    and a plan that is replaced while another machine reads it."""
    folder, part = Folder(tmp_path), RunOptions(shard_size=2, depth="names", part="2/2")
    first, _ = prepare(spec(a=1), listed("x", "y"), folder, part)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    monkeypatch.setattr("pad_pipeline.workflows.runs.prepare.earlier_run", lambda *_: (None, Scan()))
    with pytest.raises(UserError, match=r"settings\.a: 1 -> 2"):
        prepare(spec(a=2), listed("x", "y"), folder, part)
    with pytest.raises(UserError, match=r"fingerprints\.inputs"):
        prepare(spec(a=1), listed("x", "z"), folder, part)
    assert prepare(spec(a=1), listed("x", "y"), folder, part)[0] == first
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()} == before
