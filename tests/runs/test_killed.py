"""A run whose driver, worker or node is killed, or that is asked to stop, ends in the same bytes when it is resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.runs import build
from tests.conftest import ROOT, data, wait_for
from tests.doomed import POINTS, doom
from tests.runs.conftest import Pad
from tests.runs.processes import PAD, descendants, finished, process, ray_workers


def chaos(engine: str, kills: int, *options: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos", "--engine", engine, "--kills", kills, "--images", 12, *options]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def command(world: World, common: list[object]) -> list[object]:
    """A build of the ten scenes, each a shard of its own, so that there is much to interrupt."""
    return ["build", "--images", world.images, *common, "--shard-size", 1]


@pytest.fixture(scope="module")
def unbroken(command: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What that build writes where nobody kills anything."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    code, said = finished(process([*command, "--engine", "local", "--out", out]))
    assert code == 0, said
    return data(out)


def test_a_driver_killed_anywhere_and_resumed_ends_in_the_same_bytes() -> None:
    """SIGKILL at each commit point and at 5 random times: a rerun must end in the bytes of a run that nobody killed,
    with nothing left over. A writer that commits the index before the tar, or in place, fails here."""
    found = chaos("local", 5)
    assert found["deaths"] == dict.fromkeys(POINTS, 1) | {"random": 5}


@pytest.mark.long
def test_a_driver_killed_anywhere_leaves_no_child_that_writes() -> None:
    """As above, as the command line does it: the process that writes is a child, which dies with its parent."""
    found = chaos("local", 1, "--isolated", "--command", "import")
    assert found["deaths"] == dict.fromkeys(POINTS, 1) | {"random": 1}


@pytest.mark.slow
def test_a_child_killed_costs_nothing(
    command: list[object], unbroken: dict[str, str], pad: Pad, tmp_path: Path
) -> None:
    """The OOM killer takes the process that holds the models: its shard is tried again, by a successor. A run that has
    no child writes the same bytes."""
    out, here = tmp_path / "out", tmp_path / "here"
    started = process([*command, "--out", out, "--engine", "local"])
    wait_for(lambda: list(out.glob("pad-*.parquet")), started)
    (child,) = set(descendants(started.pid)) - {started.pid}
    os.kill(child, signal.SIGKILL)
    code, said = finished(started)
    assert code == 0, said
    assert "signal SIGKILL" in said and "going on in a new one" in said
    assert data(out) == unbroken
    assert pad(*command, "--engine", "local", "--out", here).code == 0
    assert data(here) == unbroken


@pytest.mark.long
def test_a_driver_killed_anywhere_on_ray_ends_in_the_same_bytes() -> None:
    """As above, with the workers in processes of their own: they may commit a shard after the driver's death, while the
    next driver is at it. (`make chaos` kills 200 times.)"""
    found = chaos("ray", 1, "--command", "import")
    assert found["deaths"] == dict.fromkeys(POINTS, 1) | {"random": 1}


@pytest.mark.long
def test_a_worker_killed_on_ray_costs_nothing(command: list[object], unbroken: dict[str, str], tmp_path: Path) -> None:
    """The OOM killer takes a worker: its shard is tried again, by a successor. Ray alone would end the job, or try
    for ever."""
    out = tmp_path / "out"
    started = process([*command, "--out", out, "--engine", "ray", "--workers", 2])
    wait_for(lambda: (out / "run.json").exists() and list(out.glob("pad-*.parquet")), started)
    os.kill(ray_workers(started.pid)[0], signal.SIGKILL)
    code, said = finished(started)
    assert code == 0, said
    assert data(out) == unbroken
    assert "Traceback" not in said


def cluster_chaos(histories: int, first: int, images: int = 24) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.cluster_chaos", "--images", images]
    command += ["--histories", histories, "--first", first]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.long
def test_nodes_that_come_and_go_on_ray_cost_nothing() -> None:
    """Nodes with GPUs join and go in mid-run, with Ray's own health checks, and the shards that lay on them between two
    links begin anew on others. Catches nodes that join and do nothing, other bytes, and a lost node that is blamed on a
    shard. (`make chaos-cluster` does 30 histories.)"""
    found = cluster_chaos(1, first=0)
    assert found["events"]["node joins"] > 1 and found["events"]["node leaves"]


@pytest.mark.long
def test_a_run_whose_cluster_dies_ends_and_can_be_resumed() -> None:
    """The head's raylet or its gcs_server is killed: exit code 4, and the same command finishes the run on another
    cluster. Catches a run without an end and without an exit code. A run of 24 images is over before it notices."""
    found = cluster_chaos(1, 4, images=80)["events"] | cluster_chaos(1, 9, images=80)["events"]
    assert found.keys() >= {"raylet killed", "gcs_server killed"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long)]
)
def test_a_signal_stops_in_good_order_and_the_rest_comes_later(
    number: signal.Signals, code: int, command: list[object], pad: Pad, tmp_path: Path
) -> None:
    """Ctrl-C, and what a cluster sends before it takes a machine away: one line, the usual exit code, nothing half
    done; the same command finishes the run."""
    out = tmp_path / "out"
    local = [*command, "--engine", "local", "--out", out]
    line = list(map(str, [PAD, *local]))
    # A shell that runs the tests in the background makes its children deaf to SIGINT, and nohup to SIGHUP.
    hear = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as started:
        wait_for(lambda: list(out.glob("*.parquet")) and (out / "pad-000000.parquet").exists(), started)
        started.send_signal(number)
        assert started.stderr
        rest = started.stderr.read()
    assert started.returncode == code, rest
    assert "Traceback" not in rest
    assert "continue" in rest
    assert not list(out.glob(".*"))
    done = pad(*local)
    assert done.code == 0, done.err
    assert re.search(r"[1-9] of 10 shards are finished already", done.err)
    assert "10 images" in done.out


def test_shards_that_are_deleted_during_a_run_are_missed(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody tidies up, or a disk is wiped: the run ended with success. The same command makes the shards again."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    command, chain = [*imported, "--shard-size", 4], build.import_chain
    for name in ("pad-000000.tar", "pad-000001.parquet"):
        change = doom(f"lose:{out / name}")
        with monkeypatch.context() as patch:
            patch.setattr(build, "import_chain", lambda *a, _change=change, **k: _change(chain(*a, **k)))
            done = pad(*command, "--out", out)
        assert done.code == 2
        assert f"{name} is gone, although the run has written it" in done.err.replace("\n", " ")
    assert pad(*command, "--out", out).code == 0
    assert pad(*command, "--out", whole).code == 0
    assert data(out) == data(whole)


@pytest.mark.slow
def test_what_killed_workers_left_unfinished_is_gone_at_the_end(imported: list[object], tmp_path: Path) -> None:
    """Each process is killed while it writes its second shard. Catches half tars that stay until the next run, and
    fill the disk; and a driver that removes what it did not write."""
    out, other = tmp_path / "out", tmp_path / "out/.pad-000099.tar.0123456789ab.partial"
    with process([*imported, "--shard-size", 5, "--out", out], "at:mid data:2") as started:
        wait_for(lambda: (out / "run.json").exists(), started)
        other.write_text("of another run")
        code, said = finished(started)
    assert code == 0, said
    assert said.count("signal SIGKILL") == 1
    assert list(out.glob(".*")) == [other]
