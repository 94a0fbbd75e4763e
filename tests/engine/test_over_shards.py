"""Shards that are read in parallel: the same results as in one process, and an end in every case."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.report import site
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.stats import as_json, read_statistics
from pad_pipeline.sources.selection import Selection
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.threads import OverShards
from pad_pipeline.verify import verify_run
from pad_pipeline.workflows.commands import common
from pad_pipeline.workflows.engine.over_shards import FEW, ReadOptions, over_shards
from tests.conftest import ROOT, wait_for
from tests.engine.parallel_work import NAMES, die, die_once, meet, refuse, shout

PROCESSES, RAY = ReadOptions(workers=3), ReadOptions(engine="ray", workers=3)
KINDS = [pytest.param(PROCESSES, id="processes"), pytest.param(RAY, id="ray", marks=pytest.mark.slow)]
KINDS_LONG = [KINDS[0], pytest.param(RAY, id="ray", marks=pytest.mark.long)]


def over(options: ReadOptions = PROCESSES, shards: int = 20, remote: bool = False) -> OverShards:
    """What reads shards elsewhere."""
    found = over_shards(options, shards, remote)
    assert found is not None
    return found


def everything(folder: Path, out: Path, over: OverShards | None) -> dict[str, Any]:
    """What stats, verify, report and filter find, each with the error that ends it."""
    shards = open_shards(folder)

    def tried(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except UserError as error:
            return str(error)

    def report() -> dict[str, bytes]:
        found = list(site.write_report(shards, out, site.ReportSettings(page_size=3), over))
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return files | {"counts": repr(found).encode()}

    source = StoredSource([str(folder)], Selection(labels=frozenset(["house", "ball", "tree", "cup"])))
    source.over = over
    return {
        "stats": tried(lambda: as_json(read_statistics(shards, over))),
        "verify": list(verify_run(folder, deep=True, over=over)),
        "report": tried(report),
        "filter": (tried(lambda: list(source)), dict(source.counts)),
    }


@pytest.mark.parametrize(
    ("options", "damaged"),
    [
        pytest.param(PROCESSES, False, id="processes"),
        pytest.param(PROCESSES, True, id="processes, damaged", marks=pytest.mark.slow),
        pytest.param(RAY, False, id="ray", marks=pytest.mark.long),
        pytest.param(RAY, True, id="ray, damaged", marks=pytest.mark.long),
    ],
)
def test_every_way_of_reading_gives_the_same(shards: Path, tmp_path: Path, options: ReadOptions, damaged: bool) -> None:
    """Byte for byte, also the error of a damaged shard. Catches results out of order, labels that are numbered shard by
    shard, and files that a worker writes elsewhere."""
    folder = tmp_path / "run"
    shutil.copytree(shards, folder)
    if damaged:
        tar = folder / "pad-000001.tar"
        content = tar.read_bytes()
        tar.write_bytes(content[: len(content) // 2] + bytes(100) + content[len(content) // 2 + 100 :])
    alone = everything(folder, tmp_path / "alone", None)
    found = everything(folder, tmp_path / "parallel", over(options, 3))
    assert found == alone
    assert damaged == any(problems for _, problems in alone["verify"]) == isinstance(alone["report"], str)


def test_results_come_in_order_and_few_ahead() -> None:
    """Catches a driver that holds the results of all shards, and a store's shards that are not read several at once."""
    taken = []

    def items() -> Iterator[str]:
        for name in NAMES:
            taken.append(name)
            yield name

    results = over(ReadOptions(workers=2))(shout, items())
    first = next(results)
    assert first[0] == "PAD-000000" and first[1] != os.getpid()
    assert len(taken) <= 6
    assert [name for name, _ in (first, *results)] == [name.upper() for name in NAMES]
    several = list(over(remote=True)(meet, NAMES))
    assert [name for name, _ in several] == NAMES and os.getpid() not in {process for _, process in several}


@pytest.mark.parametrize("options", KINDS_LONG)
def test_a_death_is_an_error_that_names_the_shard(options: ReadOptions, tmp_path: Path) -> None:
    """Once it may be chance, such as memory that others took. Catches a hang, and an innocent shard that is blamed."""
    found: list[str] = []
    with pytest.raises(UserError, match=f"shards = {NAMES[7]}: .*died"):
        found.extend(over(options)(die, NAMES))
    assert found == NAMES[:7]
    mark = str(tmp_path / "died")
    assert list(over(options)(die_once, [(name, mark) for name in NAMES])) == NAMES
    assert Path(mark).exists()


@pytest.mark.parametrize("options", KINDS)
def test_an_exception_is_that_of_one_process(options: ReadOptions) -> None:
    """Catches an error of Ray's or of the pool's, with a traceback, in place of the line for the user."""
    with pytest.raises(UserError) as caught:
        list(over(options)(refuse, NAMES))
    assert type(caught.value) is UserError
    assert str(caught.value) == f"shards = {NAMES[7]}: it is damaged; see `pad verify`"


PARENT = """
import os, signal, sys, time
from pad_pipeline.workflows.engine.over_shards import ReadOptions, over_shards
from tests.engine.parallel_work import NAMES, slow
if __name__ == "__main__":
    next(over_shards(ReadOptions(workers=3), 20, False)(slow, [(name, sys.argv[1]) for name in NAMES]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path: Path, number: int) -> None:
    """However the parent ends: Ctrl-C, or a kill that it can't answer. Catches orphans that read on for hours."""
    (tmp_path / "parent.py").write_text(PARENT)
    seen = tmp_path / "seen"
    seen.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "parent.py"), str(seen)]
    # A shell that runs the tests in the background makes its children deaf to SIGINT.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as parent:
        try:
            wait_for(lambda: len(list(seen.iterdir())) == 3, parent)
            children = [psutil.Process(int(path.name)) for path in seen.iterdir()]
            parent.send_signal(number)
            parent.communicate(timeout=30)
        finally:
            parent.kill()
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_the_options_say_when_processes_start() -> None:
    """A few shards are read here at once; an address without Ray would be ignored."""
    assert over_shards(ReadOptions(), FEW - 1, False) is None
    assert over_shards(ReadOptions(workers=1), 1000, False) is None
    assert over_shards(ReadOptions(workers=2), 1, False) is None
    assert over_shards(ReadOptions(workers=2), 2, False) is not None
    with pytest.raises(UserError, match="address = auto: it goes with `engine` ray"):
        over_shards(ReadOptions(address="auto"), 1, False)


def test_the_commands_take_the_options(
    shards: Path, pad: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an option that a command has and does not pass on."""
    seen = []

    def spied(options: ReadOptions, *rest: Any) -> OverShards | None:
        seen.append(options)
        return over_shards(options, *rest)

    monkeypatch.setattr(common, "over_shards", spied)
    for command in (["stats", shards, "--json"], ["verify", shards, "--json"]):
        alone, parallel = pad(*command), pad(*command, "--workers", 2)
        assert (alone.code, alone.out) == (parallel.code, parallel.out) == (0, alone.out)
        assert "--engine" in pad(*command, "--address", "auto").err
    for command, options, passed_on in (
        (["report", shards], ["--workers", 2], ReadOptions(workers=2)),
        (["filter", shards, "--label", "house"], ["--engine", "local"], ReadOptions(engine="local")),
    ):
        seen.clear()
        done = pad(*command, "--out", tmp_path / str(command[0]), *options)
        assert done.code == 0 and seen == [passed_on], (command, done.err, seen)
    ray = ["--engine", "ray", "--address", "127.0.0.1:1"]
    refused = pad("filter", shards, "--label", "house", "--out", tmp_path / "other", *ray)
    assert refused.code == 2 and seen[-1] == ReadOptions(engine="ray", address="127.0.0.1:1"), refused.err
