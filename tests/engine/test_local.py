"""The local engine: the same results in this process and in a child of it; a child may die, stop or be left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.engine import child
from pad_pipeline.workflows.engine.chain import Done, Link, StageWork, merged
from pad_pipeline.workflows.engine.local import LocalEngine
from pad_pipeline.workflows.engine.progress import Progress
from tests.conftest import ROOT
from tests.engine.chains import ROWS, Told, begin, chain, doing, on_gpu, until


def results(links: list[Link], shards: int = 3, progress: Progress | None = None) -> list[Done]:
    """What an isolated engine makes of a few shards."""
    return list(LocalEngine(isolated=True).run(links, map(begin, range(shards)), progress or Told(shards)))


def gone(process: int) -> bool:
    """Whether there is no such process, or nothing but its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def lines(path: Path) -> list[str]:
    """Of a text file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("isolated", [False, True])
def test_shards_come_in_order_and_their_progress_with_them(isolated: bool) -> None:
    """Figures of a child that stayed there would leave the table empty until the end."""
    seen: list[StageWork] = []

    class Seen(Told):
        def update(self, stages: dict) -> None:
            super().update(stages)
            seen.extend(state.work for state in stages.values())

    done = list(LocalEngine(isolated).run(chain(), map(begin, [2, 0, 1]), Seen(3)))
    assert done == [Done(number, {"images": ROWS, "failed": 0}) for number in (2, 0, 1)]
    assert [worked.images for worked in seen if worked.images] == sorted(worked.images for worked in seen)
    assert {2, 4, 12} <= {worked.images for worked in seen}, "after each batch, and at the end"


def test_nothing_is_built_for_no_shard() -> None:
    """A run that is finished loaded its models once more."""
    assert results(doing("segfault", "begin"), shards=0) == []


def test_isolated_work_is_done_in_another_process(tmp_path: Path) -> None:
    """One process for all shards, and not this one: each new one loads the models again."""
    results(doing("nothing", notes=tmp_path / "notes"))
    (process,) = {int(line.split()[1]) for line in lines(tmp_path / "notes")}
    assert process != os.getpid()
    assert gone(process), "and it is gone with the run"


@pytest.mark.parametrize(
    ("what", "sign"), [("segfault", "signal SIGSEGV"), ("exit", "exit code 0"), ("memory", "its memory ran out")]
)
def test_an_image_that_kills_the_child_is_set_aside_alone(what: str, sign: str) -> None:
    """A segfault, or an exit that looks like success, ended the run; then shard, stage and cause must be told."""
    progress = Told(3)
    done = results(doing(what, "1-2"), progress=progress)
    assert [one.totals["failed"] for one in done] == [0, 1, 0]
    assert f"The process died ({sign}) over pad-000001, in work; going on in a new one." in progress.text.getvalue()
    assert progress.stages["work"].work.images >= 2 * ROWS, "what dead processes had done counts"


def test_models_do_not_wait_for_reading_and_writing(tmp_path: Path) -> None:
    """Catches a GPU that is idle while images are decoded and shards are written: the models wait for the next shard's
    read to begin, and the write of a shard waits for the next shard's models."""
    done = results(on_gpu("meet", "0-3", notes=tmp_path / "notes"))
    assert done == [Done(number, {"images": ROWS, "failed": 0}) for number in range(3)]


def test_a_death_over_several_shards_counts_only_once_it_is_repeated_over_one(tmp_path: Path) -> None:
    """Catches an image of the next shard that is suspected because it was read at the same time."""
    progress = Told(3)
    done = results(on_gpu("segfault", "1-2", notes=tmp_path / "notes"), progress=progress)
    assert [one.totals["failed"] for one in done] == [0, 1, 0]
    said = progress.text.getvalue()
    assert "pad-000001 or pad-000002; going on in a new one, with one shard at a time." in said
    assert "The process died (signal SIGSEGV) over pad-000001, in work; going on in a new one." in said
    assert "over pad-000000, in" not in said and "over pad-000002, in" not in said


def test_a_machine_with_memory_for_one_shard_learns_that(tmp_path: Path) -> None:
    """Catches a run that begins with three shards again and again, and loads its models after each death."""
    progress = Told(12)
    done = results(on_gpu("crowd", "2-3", "7-3", notes=tmp_path / "notes"), shards=12, progress=progress)
    assert [one.totals["failed"] for one in done] == [0] * 12
    said = progress.text.getvalue()
    assert said.count("The process died") == 2
    assert said.count("The rest of the run works on one shard at a time") == 1


def test_an_error_over_the_next_shard_comes_after_this_ones_result(tmp_path: Path) -> None:
    """Catches a shard that was written and is not counted."""
    run = LocalEngine(isolated=True).run(
        on_gpu("raise", "1-0", notes=tmp_path / "notes"), map(begin, range(3)), Told(3)
    )
    assert next(run).number == 0
    with pytest.raises(UserError, match="something is wrong"):
        next(run)


def test_a_child_that_is_killed_once_costs_no_image(tmp_path: Path) -> None:
    """The OOM killer comes by between two shards: all come through."""
    notes = tmp_path / "notes"
    progress = Told(3)
    run = LocalEngine(isolated=True).run(doing("nothing", notes=notes), map(begin, range(3)), progress)
    done = [next(run)]
    os.kill(int(lines(notes)[-1].split()[1]), signal.SIGKILL)
    done += run
    assert [one.totals["failed"] for one in done] == [0, 0, 0]
    assert progress.text.getvalue().count("signal SIGKILL") == 1


def test_a_machine_without_memory_for_a_moment_costs_no_image(tmp_path: Path) -> None:
    """The first process lacks memory for one image, and the next one does not: all come through."""
    progress = Told(3)
    done = results(doing("scarce", "1-2", notes=tmp_path / "notes"), progress=progress)
    assert [one.totals["failed"] for one in done] == [0, 0, 0]
    assert progress.text.getvalue().count("its memory ran out") == 1


def test_a_lack_of_memory_in_this_process_is_one_line() -> None:
    """Without a child there is nothing to try again in. Catches a traceback, and images that fail for it."""
    with pytest.raises(UserError, match="stage = work: the memory ran out"):
        list(LocalEngine().run(doing("memory", "1-2"), map(begin, range(3)), Told(3)))


@pytest.mark.parametrize("what", ["segfault", "raise", "memory"])
def test_a_child_that_fails_before_it_has_begun_ends_the_run_with_one_line(what: str) -> None:
    """Models that don't fit into memory would be loaded without end."""
    with pytest.raises(UserError) as raised:
        results(doing(what, "begin"))
    line = {"segfault": "its process died (signal SIGSEGV) before it had begun a shard", "raise": "something is wrong"}
    line["memory"] = "stage = work: the memory ran out"
    assert line[what] in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("what", ["raise", "foreign"])
def test_an_error_in_the_child_is_raised_here(what: str) -> None:
    """With its text, and its traceback as a note; also one that can't be sent, which left the parent waiting."""
    with pytest.raises(UserError if what == "raise" else RuntimeError, match="something is wrong") as raised:
        results(doing(what, "1-0"))
    assert any("chains.py" in note for note in raised.value.__notes__)


def test_a_run_that_is_closed_stops_its_child_in_good_order(tmp_path: Path) -> None:
    """What is in hand is dropped with its unfinished files; a child that goes on would write into a folder that the
    next run holds."""
    notes = tmp_path / "notes"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(what="wait", notes=str(notes)))
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as started:
        until(lambda: "waits" in lines(notes))
        started.send_signal(signal.SIGINT)
        assert started.stderr
        said = started.stderr.read()
    assert lines(notes)[-1] == "stopped in good order"
    assert said.count("Traceback") == 1 and "KeyboardInterrupt" in said, said


def test_a_child_that_does_not_stop_is_ended_by_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stage that hangs in native code hears no signal: Ctrl-C must end the run all the same."""
    monkeypatch.setattr(child, "PATIENCE", 0.2)
    notes = tmp_path / "notes"
    held = child.Child()
    held.begin(merged(doing("deaf", "0-0", notes=notes)))
    held.send(begin(0).task())
    until(lambda: "waits" in lines(notes))
    held.stop()
    assert held.process.returncode == -signal.SIGKILL


SCRIPT = """
import signal
from pad_pipeline.workflows.engine.local import LocalEngine
from tests.engine.chains import Told, begin, doing

signal.signal(signal.SIGINT, signal.default_int_handler)
with open({notes!r}, "a") as stream:
    stream.write("script\\n")
for done in LocalEngine(isolated=True).run(doing({what!r}, "0-0", notes={notes!r}), map(begin, range(2)), Told(2)):
    print(done.totals)
"""
"""No `if __name__ == "__main__"`: multiprocessing would run it again in the child, and that in its child."""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """It is run once, and comes through."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(what="nothing", notes=str(tmp_path / "notes")))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, env=ENVIRONMENT)
    assert (ran.returncode, ran.stdout.count("images"), ran.stderr) == (0, 2, "")
    assert lines(tmp_path / "notes").count("script") == 1


def test_no_orphan_goes_on_writing(tmp_path: Path) -> None:
    """`kill -9` of the parent: the child must be gone before the next run has planned."""
    notes, script = tmp_path / "notes", tmp_path / "script.py"
    script.write_text(SCRIPT.format(what="wait", notes=str(notes)))
    with subprocess.Popen([sys.executable, script], env=ENVIRONMENT) as started:
        until(lambda: "waits" in lines(notes))
        (orphan,) = {int(line.split()[1]) for line in lines(notes) if line.startswith("0-0")}
        started.kill()
        killed = time.monotonic()
        until(lambda: gone(orphan))
        assert time.monotonic() - killed < 2
    before = lines(notes)
    time.sleep(0.1)
    assert lines(notes) == before


def test_a_child_that_was_started_early_is_the_one_that_works(tmp_path: Path) -> None:
    """It imports while the parent plans; a second one would import for nothing."""
    child.Child.preload("tests.engine.chains")
    early = child.Child._waiting
    child.Child.preload("tests.engine.chains")
    assert early and child.Child._waiting is early
    results(doing("nothing", notes=tmp_path / "notes"))
    assert {line.split()[1] for line in lines(tmp_path / "notes")} == {str(early.process.pid)}
