"""What may happen to a run without losing or changing a byte: kills, crashes, full disks, broken stages, rivals."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.cluster import nodes
from tests.conftest import SHARED, data, shared, wait_for
from tests.doomed import POINTS

Pad = Callable[..., Any]
PAD = Path(sys.executable).with_name("pad")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def common(models_toml: Path) -> list[object]:
    return ["--models", models_toml, "--view-size", 112, "--threads", 1]


@pytest.fixture(scope="module")
def imported(world: World, models_toml: Path) -> list[object]:
    """An import of the ten scenes: no model runs, so it takes no time."""
    return ["import", "coco", "--annotations", world.instances, "--images", world.images,
            "--models", models_toml, "--view-size", 112]  # fmt: skip


def process(arguments: list[object], what: str = "", **more: Any) -> subprocess.Popen[str]:
    """`pad` as a process of its own; with something wrong in it, see `doomed`."""
    command = [sys.executable, "-m", "tests.doomed", what, "--"] if what else [PAD]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen(list(map(str, [*command, *arguments])), **(options | more))


def finished(started: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and all that it printed."""
    said, _ = started.communicate(timeout=300)
    return started.returncode, said


# ---------------------------------------------------------------- kills


def chaos(engine: str, kills: int, *options: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos", "--engine", engine, "--kills", kills, "--images", 12, *options]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_driver_killed_anywhere_and_resumed_ends_in_the_same_bytes() -> None:
    """SIGKILL at each commit point and at 20 random times: a rerun must end in the bytes of a run that nobody killed,
    with nothing left over. A writer that commits the index before the tar, or in place, fails here."""
    found = chaos("local", 20)
    assert found["deaths"] == dict.fromkeys(POINTS, 1) | {"random": 20}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_driver_killed_anywhere_on_ray_ends_in_the_same_bytes(kills: int) -> None:
    """As above, with the workers in processes of their own: they may commit a shard after the driver's death, while the
    next driver is at it. (`make chaos` kills 200 times.)"""
    found = chaos("ray", kills, "--command", "import")
    assert found["deaths"] == dict.fromkeys(POINTS, 1) | {"random": kills}


def test_a_worker_killed_on_ray_costs_nothing(world: World, common: list[object], tmp_path: Path) -> None:
    """The OOM killer takes a worker: its shard is tried again, by a successor. Ray alone would end the job, or try
    for ever."""
    command = ["build", "--images", world.images, *common, "--shard-size", 1, "--out"]
    assert finished(process([*command, tmp_path / "whole", "--engine", "local"]))[0] == 0
    out = tmp_path / "out"
    started = process([*command, out, "--engine", "ray", "--workers", 2])
    wait_for(lambda: (out / "run.json").exists() and list(out.glob("pad-*.parquet")), started)
    workers = [int(found) for found in _ray_workers()]
    os.kill(workers[0], signal.SIGKILL)
    code, said = finished(started)
    assert code == 0, said
    assert data(out) == data(tmp_path / "whole")
    assert "Traceback" not in said


def _ray_workers() -> Iterator[str]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if b"ray::LinkActor" in (folder / "cmdline").read_bytes():
                    yield folder.name
            except OSError:
                continue


def test_a_node_lost_on_ray_costs_nothing(world: World, common: list[object], tmp_path: Path) -> None:
    """Two nodes work, one of them goes in mid-run, with the shards that lay on it: they begin anew on the other."""
    command = ["build", "--images", world.images, *common, "--shard-size", 1, "--out"]
    assert finished(process([*command, tmp_path / "whole", "--engine", "local"]))[0] == 0
    out = tmp_path / "out"
    with nodes(2) as (made, workers):
        options = ["--engine", "ray", "--workers", 2, "--placement", "pools", "--address", made.address]
        started = process([*command, out, *options])
        wait_for(lambda: out.exists() and list(out.glob("pad-*.parquet")), started)
        made.remove_node(workers[0], allow_graceful=False)
        code, said = finished(started)
    assert code == 0, said
    assert data(out) == data(tmp_path / "whole")


# ---------------------------------------------------------------- stages that kill, stages that fail


@pytest.mark.parametrize(
    ("engine", "what", "signs"),
    [
        (["--engine", "local"], "segfault:scene-00007", "signal SIGSEGV"),
        (["--engine", "ray", "--workers", 2], "exit:0:scene-00007", "A worker died over pad-000003, in deadly"),
    ],
)
def test_an_image_that_kills_its_process_is_set_aside_alone(
    engine: list[object], what: str, signs: str, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """A decoder that segfaults (or exits: with 0, which looks like success) ended the run, at the same image each time.
    Its neighbors must come through; to drop what shared the worker is not enough."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    imported = [*imported, "--shard-size", 2]
    code, said = finished(process([*imported, *engine, "--out", out], what))
    assert code == 0, said
    assert signs in said
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    assert {source for source, row in rows.items() if row["status"] == "failed"} == {"scene-00007.png"}
    assert rows["scene-00007.png"]["stage"] == "deadly"
    assert "killed the process" in rows["scene-00007.png"]["reason"]
    assert not list(out.glob(".*"))
    # Without what kills, the image can be had back, and nothing tells the shards from those that had no trouble.
    assert pad(*imported, "--out", out, "--retry-failed").code == 0
    assert pad(*imported, "--out", whole).code == 0
    assert data(out) | {"run.json": ""} == data(whole) | {"run.json": ""}


def test_a_stage_that_always_fails_stops_the_run(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """A GPU driver that broke in the night set 500,000 images aside. Now the run stops, and nothing is committed."""
    for engine in ("local", "ray"):
        out = tmp_path / engine
        code, said = finished(process([*imported, "--breaker", 5, "--engine", engine, "--out", out], "broken"))
        assert code == 2, said
        assert "stage = broken: 5 images in a row failed" in said
        assert "the model gives no finite numbers" in said
        assert not list(out.glob("pad-*"))
    assert pad(*imported, "--out", tmp_path / "local").code == 0


def test_a_stage_that_fails_for_some_goes_on(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """The breaker counts images in a row: one of ten is no reason to stop; --max-failed judges at the end."""
    out = tmp_path / "out"
    command = [*imported, "--breaker", 2, "--out", out]
    code, said = finished(process([*command, "--max-failed", "0"], "broken:scene-00003"))
    assert code == 1, said
    assert "1 of 10 images failed; --max-failed 0 allows 0" in said
    failed = [row for _, row in open_shards(out).rows() if row["status"] == "failed"]
    assert [(row["id"], row["stage"], row["reason"]) for row in failed] == [
        ("scene-00003", "broken", "RuntimeError: the model gives no finite numbers")
    ]
    assert pad(*command, "--max-failed", "10%").code == 0
    assert pad(*command, "--max-failed", "half").code == 2


def test_a_retry_that_dies_loses_nothing(folder: Path, imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Killed between tar and index of a shard that is written again: the next retry left that shard out for good."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 2, "--out", out]
    (folder / "scene-00004.png").write_bytes(b"garbage")
    assert pad(*command).code == 0
    expected = data(out)
    (out / "pad-000002.parquet").unlink()  # what such a death leaves
    assert pad(*command, "--retry-failed").code == 0
    assert data(out) == expected


@pytest.mark.slow
def test_a_retry_ends_where_one_image_fails_again_and_another_kills(
    folder: Path, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """Each new process tried the first shard again, and forgot over it how often the second had killed."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 2, "--out", out]
    good = (folder / "scene-00005.png").read_bytes()
    for name in ("scene-00000.png", "scene-00005.png"):
        (folder / name).write_bytes(b"garbage")
    assert pad(*command).code == 0
    (folder / "scene-00005.png").write_bytes(good)
    code, said = finished(process([*command, "--retry-failed"], "segfault:scene-00005"))
    assert code == 0, said
    failed = {row["id"]: row["stage"] for _, row in open_shards(out).rows() if row["status"] == "failed"}
    assert failed == {"scene-00000": "decode", "scene-00005": "deadly"}
    assert not list(out.glob(".*"))


def test_facts_that_were_edited_stop_a_rerun(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """One value changed in run.json made every shard another run's, and the rerun threw them away."""
    out = tmp_path / "out"
    assert pad(*imported, "--out", out).code == 0
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(text.replace('"max_aspect": 100.0', '"max_aspect": 100.5'))
    before = data(out)
    refused = pad(*imported, "--fit", "pad", "--out", out)
    assert refused.code == 2 and "changed after it was written" in refused.err
    assert data(out) == before


# ---------------------------------------------------------------- folders, disks, rivals, clocks


def test_two_runs_into_one_folder_are_kept_apart(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """The second refuses and says who is there; a lock file that a dead process left holds nobody off."""
    out = tmp_path / "out"
    assert pad(*imported, "--out", out).code == 0
    expected = data(out)
    with (out / ".lock").open("w") as held:
        held.write('{"host": "here", "process": 4711}')
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = pad(*imported, "--out", out)
        assert refused.code == 2
        assert "another run is writing there (process 4711 on here)" in refused.err
    assert pad(*imported, "--out", out).code == 0
    assert data(out) == expected


def test_leftovers_of_the_dead_are_removed_and_nothing_else(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Unfinished files, a tar that was never committed, an index without its tar: gone or made anew. What only looks
    like them stays."""
    out = tmp_path / "out"
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    expected = data(out)
    for name in (".pad-000001.tar.0123456789ab.partial", ".plan.parquet.0123456789ab.partial", "pad-000009.tar"):
        (out / name).write_bytes(b"left")
    mine = [".notes", ".pad-000001.tar.mine.partial", "pad-notes.txt", ".pad-000001.tar.0123456789ab.partial~"]
    for name in mine:
        (out / name).write_bytes(b"mine")
    (out / "pad-000000.tar").unlink()
    (out / "pad-000002.parquet").unlink()
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    for name in mine:
        assert (out / name).read_bytes() == b"mine"
        (out / name).unlink()
    assert data(out) == expected


def test_a_damaged_shard_is_made_anew(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """A tar that was cut short, an index that is garbage or another run's: a rerun used to count them as finished."""
    out, other = tmp_path / "out", tmp_path / "other"
    assert pad(*imported, "--shard-size", 3, "--out", out).code == 0
    assert pad(*imported, "--shard-size", 3, "--fit", "pad", "--out", other).code == 0
    expected = data(out)
    os.truncate(out / "pad-000000.tar", 5000)
    (out / "pad-000001.parquet").write_bytes(b"garbage")
    for ending in ("tar", "parquet"):
        shutil.copy(other / f"pad-000002.{ending}", out)
    again = pad(*imported, "--shard-size", 3, "--out", out)
    assert again.code == 0
    assert "Damaged, and made anew: 3 shards (pad-000000, pad-000001, pad-000002)" in again.err
    assert data(out) == expected


@contextmanager
def small_disk(folder: Path, options: str = "size=5m") -> Iterator[Path]:
    """A disk of 5 MB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_of_5_mb(imported: list[object], world: World, pad: Pad, tmp_path: Path) -> None:
    """Full in mid-run: one line, what is committed stays sound; with room, the same command ends in the same bytes."""
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    for path in images.glob("*.png"):  # each 1 MB, so that five fit
        Image.open(path).resize((700, 500), Image.Resampling.NEAREST).save(path, compress_level=0)
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", images, *imported[6:]]
    coco = json.loads(world.instances.read_text())
    for entry in coco["images"]:
        del entry["width"], entry["height"]
    coco["annotations"] = []
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with small_disk(tmp_path / "disk") as disk:
        stopped = pad(*command, "--shard-size", 1, "--out", disk / "out")
        assert stopped.code == 2
        assert "can't be written (No space left on device)" in stopped.err
        assert "Traceback" not in stopped.err
        committed = sorted((disk / "out").glob("*.parquet"))
        assert 2 <= len(committed) < 10
        assert not list((disk / "out").glob(".*"))
        shutil.copytree(disk / "out", tmp_path / "out")
        whole = tmp_path / "whole"
        assert pad(*command, "--shard-size", 1, "--out", whole).code == 0
        assert pad(*command, "--shard-size", 1, "--out", tmp_path / "out").code == 0
        assert data(tmp_path / "out") == data(whole)


def test_a_disk_that_can_only_be_read(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """One line, for a new run and for one that was begun when it could be written."""
    with small_disk(tmp_path / "disk") as disk:
        assert pad(*imported, "--shard-size", 4, "--out", disk / "begun").code == 0
        (disk / "begun" / "pad-000001.parquet").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for name in ("new", "begun"):
            refused = pad(*imported, "--shard-size", 4, "--out", disk / name)
            assert refused.code == 2
            assert "can't be written (Read-only file system)" in refused.err
            assert refused.err.count("\n") == 1


def test_a_folder_that_vanishes(world: World, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """Somebody deletes the output in mid-run: one line, no folder half made again."""
    out = tmp_path / "out"
    command = ["build", "--images", world.images, *common, "--engine", "local", "--shard-size", 1, "--out", out]
    started = process(command)
    wait_for(lambda: list(out.glob("pad-*.parquet")), started)
    out.rename(tmp_path / "elsewhere")
    code, said = finished(started)
    assert code == 2, said
    assert "can't be written" in said
    assert "Traceback" not in said
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    assert finished(process(command))[0] == 0
    assert pad("verify", out).code == 0


def test_clocks_and_time_zones_do_not_alter_bytes(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar that notes when it was made differs each time."""
    assert pad(*imported, "--out", tmp_path / "here").code == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3e8)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert pad(*imported, "--out", tmp_path / "there").code == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    assert data(tmp_path / "here") == data(tmp_path / "there")


# ---------------------------------------------------------------- failures, fingerprints


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """Images of one's own, to change."""
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    return images


def test_only_what_failed_is_tried_again(folder: Path, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """img2dataset's users have asked for it for years. The mended image joins its shard; all other images keep what was
    found in them, to the byte, without being computed again."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["build", "--images", folder, *common, "--engine", "local", "--shard-size", 4]
    good = (folder / "scene-00005.png").read_bytes()
    assert pad(*command, "--out", whole).code == 0
    (folder / "scene-00005.png").write_bytes(good[:700])
    assert pad(*command, "--out", out).code == 0
    kept = {row["key"]: row["sha256"] for _, row in open_shards(out).rows() if row["status"] == "ok"}
    nothing = pad(*command, "--out", out, "--retry-failed")
    assert nothing.code == 0 and "9 ok, 0 empty, 1 failed" in nothing.out
    (folder / "scene-00005.png").write_bytes(good)
    assert "fingerprints.inputs" in pad(*command, "--out", out).err, "without being asked, a changed input is refused"
    before = (out / "pad-000000.tar").stat().st_mtime_ns, (out / "pad-000001.tar").stat().st_mtime_ns
    again = pad(*command, "--out", out, "--retry-failed")
    assert again.code == 0, again.err
    assert "10 ok, 0 empty, 0 failed" in again.out
    after = (out / "pad-000000.tar").stat().st_mtime_ns, (out / "pad-000001.tar").stat().st_mtime_ns
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    shards, wholes = open_shards(out), open_shards(whole)
    for (name, row), (_, other) in zip(shards.rows(), wholes.rows(), strict=True):
        assert row["sha256"] == kept.get(row["key"], row["sha256"])
        assert (row["key"], row["status"], row["regions"]) == (other["key"], "ok", other["regions"])
        assert shards.sample(name, row).image == (folder / row["source"]).read_bytes()
    assert pad("verify", out, "--deep").code == 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stages"]["tag"]["images"] == 1, "the others were not computed again"
    (folder / "scene-00006.png").write_bytes(good)
    refused = pad(*command, "--out", out, "--retry-failed")
    assert refused.code == 2 and "scene-00006" in refused.err, "an image that was sound may not change"
    assert pad(*command, "--out", tmp_path / "new", "--retry-failed").code == 2


def test_a_difference_is_spelled_out(folder: Path, imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Which image, and what about it; which setting, from what to what. And the ways on are named."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--out", out]
    assert pad(*command).code == 0

    def refusal(*more: object) -> str:
        refused = pad(*command, *more)
        assert refused.code == 2, refused.out
        assert refused.err.count("\n") == 1
        assert "--fork NEWOUT" in refused.err
        return str(refused.err)

    path = folder / "scene-00003.png"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    size = len(content)
    assert f"pad-000000 row 3, bytes: {size} -> {size + 1}" in refusal()
    path.write_bytes(content[:-1] + b"\1")  # the size tells nothing
    assert "contents.scene-00003" in refusal()
    path.write_bytes(content)
    assert "view.fit: crop -> pad" in refusal("--fit", "pad")
    assert "images: 10 -> 4" in refusal("--limit", 4)
    assert pad(*command).code == 0


def test_contents_can_be_told_in_full(folder: Path, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """`--fingerprint full` notes every image's sha256; one that changes between planning and reading fails by name."""
    command = ["build", "--images", folder, *common, "--engine", "local", "--fingerprint", "full"]
    assert pad(*command, "--out", tmp_path / "one").code == 0
    path = folder / "scene-00009.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    refused = pad(*command, "--out", tmp_path / "one")
    assert refused.code == 2
    assert "row 9, sha256: " in refused.err


def test_a_fork_takes_over_what_would_come_out_the_same(
    folder: Path, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """More images at the end: the whole shards before are copied, the run in --out stays as it is. Another view:
    nothing carries over."""
    out, fork, other = tmp_path / "out", tmp_path / "fork", tmp_path / "other"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 3]
    assert pad(*command, "--limit", 7, "--out", out).code == 0
    expected = data(out)
    forked = pad(*command, "--out", out, "--fork", fork)
    assert forked.code == 0, forked.err
    assert "2 of 4 shards" in forked.err
    assert data(out) == expected
    assert pad(*command, "--out", tmp_path / "whole").code == 0
    assert data(fork) == data(tmp_path / "whole")
    assert "0 of 4 shards" in pad(*command, "--fit", "pad", "--out", out, "--fork", other).err
    assert pad("verify", other, "--deep").code == 0


def test_changed_code_is_refused_and_can_be_accepted(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a run by one version and half by another can't be described, unless somebody says that they agree; what
    they said stays in run.json."""
    from pad_pipeline.workflows.runs import build

    out = tmp_path / "out"
    command = [*imported, "--shard-size", 4, "--out", out]
    assert pad(*command).code == 0
    code = json.loads((out / "run.json").read_text())["fingerprints"]["code"]
    (out / "pad-000001.parquet").unlink()
    monkeypatch.setattr(build, "code_fingerprint", lambda: "9.9.9+another")
    refused = pad(*command)
    assert refused.code == 2
    assert f"fingerprints.code: {code} -> 9.9.9+another" in refused.err
    assert "--accept-changed-code" in refused.err
    assert pad(*command, "--accept-changed-code").code == 0
    facts = json.loads((out / "run.json").read_text())
    assert (facts["fingerprints"]["code"], facts["accepted_code"]) == ("9.9.9+another", [code])
    assert pad(*command).code == 0
    assert pad("verify", out).code == 0


def test_a_dry_run_measures_and_writes_nothing(world: World, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """The cost of 500,000 images should be known before they are begun."""
    out = tmp_path / "out"
    refused = pad("build", "--images", world.images, *common, "--dry-run", "--retry-failed", "--out", out)
    assert refused.code == 2 and "leave one of them out" in refused.err
    done = pad("build", "--images", world.images, *common, "--engine", "local", "--dry-run", "--out", out)
    assert done.code == 0, done.err
    assert "10 in 1 shards" in done.out
    assert "5 images, 0 failed" in done.out
    for stage in ("decode", "tag", "ground", "segment", "patchify"):
        assert re.search(rf"{stage} +│ 0\.\d{{3}} s an image", done.out), stage
    assert not out.exists()


# ---------------------------------------------------------------- odd images, progress, ports


@pytest.mark.skipif(not (SHARED / "data/odd_images").exists(), reason="no check data at shared/data/odd_images")
def test_odd_images_cost_no_memory(world: World, tmp_path: Path) -> None:
    """Files of some bytes that claim gigapixels: what they claim is never allocated. Peak memory of reading them all
    stays within 300 MB of reading ten good ones."""

    def peak(folder: Path) -> int:
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from pad_pipeline.images import DecodeSettings, BadImage, decode\n"
            "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
            "    try: decode(path.read_bytes(), DecodeSettings())\n"
            "    except BadImage: pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT, check=True
        )
        return int(done.stdout)

    assert peak(shared("odd_images")) - peak(world.images) < 300_000


def test_figures_are_kept_for_programs(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """metrics.jsonl: what the live table shows, one entry a minute and one at the end; a rerun adds to it."""
    out = tmp_path / "out"
    said = pad(*imported, "--shard-size", 4, "--out", out).err
    assert re.search(
        r"3 of 3 shards, 10 images, \d+\.\d/s, \d+ regions, 0 failed, 0:00:\d\d elapsed, 0:00:00 left", said
    )
    (entry,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (entry["images"], entry["shards"], entry["failed"], entry["seconds_left"]) == (10, 3, 0, 0)
    assert entry["images_per_second"] > 0
    for stage in ("decode", "annotate", "patchify"):
        assert entry["stages"][stage]["images"] == 10
        assert set(entry["stages"][stage]) == {"images", "images_per_second", "failed", "queue", "workers", "busy"}
    (out / "pad-000001.parquet").unlink()
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_ray_listens_on_loopback_alone(world: World, common: list[object], tmp_path: Path) -> None:
    """Who reaches Ray's ports can run code; it used to listen on every address of the machine."""
    out = tmp_path / "out"
    started = process(["build", "--images", world.images, *common, "--engine", "ray", "--shard-size", 2, "--out", out])
    wait_for(lambda: list(_ray_workers()), started)
    open_to_all = _listening()
    started.send_signal(signal.SIGTERM)
    code, said = finished(started)
    assert code == 143, said
    assert "continue" in said
    assert not open_to_all


def _listening() -> list[str]:
    """Addresses beside loopback on which processes of Ray listen."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and b"ray" in (folder / "cmdline").read_bytes():
                held = {str(link.readlink()) for link in (folder / "fd").iterdir()}
                found += [sockets[name] for name in held & sockets.keys()]
        except OSError:
            continue
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    return [address for address in found if address not in loopback]


def test_a_file_is_fetched_once_for_all_workers_of_a_node(tmp_path: Path) -> None:
    """Eight workers of a node that start together fetched 2.5 GB each."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.send_header("Accept-Ranges", "none")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.do_HEAD()
            self.wfile.write(bytes(1_000_000))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/sam.pth"
    code = (
        "import sys; from pad_pipeline.weights import fetch_file; print(fetch_file('segmenter.weights', sys.argv[1]))"
    )
    environment = os.environ | {"PAD_CACHE": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        for _ in range(3)
    ]
    paths = {worker.communicate()[0] for worker in workers}
    server.shutdown()
    assert len(paths) == 1
    assert hashlib.sha256(Path(paths.pop().strip()).read_bytes()).digest() == hashlib.sha256(bytes(1_000_000)).digest()
    assert len(asked) == 1
