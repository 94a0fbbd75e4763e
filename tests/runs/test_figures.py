"""The speed of a run is told before it by a dry run, and kept for programs while it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pad_pipeline.miniature.files import World
from pad_pipeline.storage import Folder, RemoteFolder
from pad_pipeline.workflows.engine import gpu_use, progress
from pad_pipeline.workflows.engine.chain import Done, StageWork, add_work, without_gpus
from pad_pipeline.workflows.engine.gpu_use import GpuUse
from pad_pipeline.workflows.engine.progress import Progress, StageState
from tests.runs.conftest import Pad


def test_a_dry_run_measures_and_writes_nothing(world: World, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """The cost of 500,000 images should be known before they are begun."""
    out = tmp_path / "out"
    refused = pad("build", "--images", world.images, *common, "--dry-run", "--retry-failed", "--out", out)
    assert refused.code == 2 and "leave one of them out" in refused.err
    done = pad(
        "build", "--images", world.images, *common, "--engine", "local", "--dry-run", "--card", "4xh100", "--out", out
    )
    assert done.code == 0, done.err
    assert re.search(r"on 4 x H100, calculated +│ 0\.00 hours, if 40% of the card is used", done.out)
    assert "10 in 1 shards" in done.out
    assert "5 images, 0 failed" in done.out
    for stage in ("decode", "tag", "ground", "segment", "patchify"):
        assert re.search(rf"{stage} +│ 0\.\d{{3}} s an image", done.out), stage
    assert not out.exists()


def test_a_dry_run_calculates_hours_on_cards(world: World, pad: Pad, tmp_path: Path) -> None:
    """Of the miniature, whose operations are known from its reference loop (benchmarks/results): attention on the CPU
    was not counted. Twice as many cards take half as long."""
    command = ["build", "--images", world.images, "--models", "miniature", "--limit", 4, "--engine", "local"]
    command += ["--out", tmp_path]
    for card, told in (("h1", "the known cards are A10, A100"), ("0xh100", "write for instance h100, or 16xh100")):
        refused = pad(*command, "--dry-run", "--card", card)
        assert refused.code == 2 and f"--card = {card}: " in refused.err and told in refused.err
    refused = pad(*command, "--card", "h100")
    assert refused.code == 2 and "it goes with --dry-run" in refused.err
    found = json.loads(pad(*command, "--dry-run", "--card", "16xA100", "--json").out)
    assert found["failed"] == 0
    known = {"tag": 0.3e9, "ground": 0.7e9, "segment": 1.4e9}
    assert found["operations"] == {name: pytest.approx(count, rel=0.3) for name, count in known.items()}
    all_of_it = found["images"] * sum(found["operations"].values())
    wanted = {str(count): pytest.approx(all_of_it / 312e12 / 0.4 / 3600 / count) for count in (1, 8, 16)}
    assert found["hours_by_cards"] == wanted


def test_figures_are_kept_for_programs(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """metrics.jsonl: what the live table shows, one entry a minute and one at the end; a rerun adds to it."""
    out = tmp_path / "out"
    said = pad(*imported, "--shard-size", 4, "--out", out).err
    assert re.search(
        r"3 of 3 shards, 10 images, \d+\.\d/s, \d+ regions, 0 failed, 0:00:\d\d elapsed, 0:00:00 left", said
    )
    (entry,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (entry["images"], entry["shards"], entry["failed"], entry["seconds_left"]) == (10, 3, 0, 0)
    assert entry["gpu_use"] is None, "nothing computes on a GPU here"
    assert entry["images_per_second"] > 0
    for stage in ("decode", "annotate", "patchify"):
        assert entry["stages"][stage]["images"] == 10
        assert set(entry["stages"][stage]) == {
            "images", "images_per_second", "failed", "queue", "workers", "busy", "gpu_use"
        }  # fmt: skip
    (out / "pad-000001.parquet").unlink()
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def told(folder: Folder, shards: int) -> Progress:
    """A run of shards of one image, which tells of each."""
    shown = Progress("test", shards, shards, Console(quiet=True), folder)

    def results() -> Iterator[Done]:
        for number in range(shards):
            shown.update({"work": StageState(StageWork(number + 1))})
            yield Done(number, {"images": 1, "failed": 0, "regions": 0})

    shown.follow(results())
    return shown


def test_the_time_left_is_known_before_the_first_shard_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the stages' own images, after the first batch; "about", until a shard is done. Catches a first hour without
    any estimate, and one that follows the fastest stage."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("test", 4, 100, Console(quiet=True))
    assert shown.figures()["seconds_left"] is None
    now[0] += 10
    shown.update({"tag": StageState(StageWork(50, 0, 1.0), 1), "ground": StageState(StageWork(20, 0, 9.0), 1),
                  "segment": StageState()})  # fmt: skip
    figures = shown.figures()
    assert figures["seconds_left"] == 40  # of ground: 80 images at 2 a second
    line = shown._line(figures)
    assert "0 of 4 shards, 0 images" in line and "about 0:00:40 left; busiest ground (90%, image 20 of 100)" in line


def test_rates_and_shares_begin_with_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a short run on Ray that seems to crawl and to idle, because half a minute of its time was the start."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("test", 4, 100, Console(quiet=True))
    now[0] += 30
    shown.update({"tag": StageState(StageWork(0), 2)})
    now[0] += 4
    shown.update({"tag": StageState(StageWork(8, 0, 4.0), 2), "ground": StageState(StageWork(8, 0, 4.0), 2)})
    figures = shown.figures()
    assert (figures["elapsed_seconds"], figures["working_seconds"]) == (34, 4)
    assert (figures["stages"]["tag"]["busy"], figures["stages"]["tag"]["images_per_second"]) == (0.5, 2)
    assert "0:00:34 elapsed (0:00:30 to start), about 0:00:46 left" in shown._line(figures)


def test_the_use_of_gpus_is_shown_where_it_is_known() -> None:
    """As a mean over workers, without those that are gone or whose driver does not tell. Catches a use above 100%, and
    a GPU of which nothing is known that counts as idle."""
    shown = Progress("test", 4, 100, Console(quiet=True))
    workers: list[dict[str, StageWork]] = [
        {"decode": StageWork(9, 0, 1.0), "tag": StageWork(8, 0, 1.0, 0.9, 1)},
        {"tag": StageWork(8, 0, 1.0, 0.5, 1)},
        {"tag": StageWork(8, 0, 1.0)},
        without_gpus({"tag": StageWork(8, 0, 1.0, 0.1, 1)}),
    ]
    shown.update({name: StageState(work, 3) for name, work in add_work(workers).items()})
    figures = shown.figures()
    assert figures["stages"]["tag"]["images"] == 32
    assert (figures["gpu_use"], figures["stages"]["tag"]["gpu_use"]) == (0.7, 0.7)
    assert figures["stages"]["decode"]["gpu_use"] is None
    assert shown._line(figures).endswith("; GPU 70%")


def test_a_gpu_that_does_not_tell_its_use_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a part of a GPU (MIG), or without the driver's library. Catches a run that such a GPU stops."""
    assert GpuUse().recent() is None or torch.cuda.is_available()
    asked: list[int] = []
    answers = iter([40, 80])

    def utilization() -> int:
        asked.append(1)
        return next(answers)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(gpu_use, "EVERY", 0)
    use = GpuUse()
    assert [use.recent(), use.recent()] == [0.4, pytest.approx(0.6)]
    assert [use.recent(), use.recent()] == [None, None] and len(asked) == 3
    now = [1000.0]
    monkeypatch.setattr(gpu_use.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 10 if now[0] < 1050 else 90)
    use, shares = GpuUse(), []
    for now[0] in (1000.0, 1055.0, 1070.0, 1200.0):
        shares.append(use.recent())
    assert shares == [0.1, pytest.approx(0.5), 0.9, 0.9], "what is older than a minute does not count"


def test_figures_of_a_long_run_cost_no_more_than_those_of_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry wrote the whole file anew: gigabytes after a week. On a disk an entry is added to what is there."""
    monkeypatch.setattr(progress, "EVERY", 0)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"earlier": 1}\n')
    file = path.stat().st_ino
    told(Folder(tmp_path), 50)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries[0] == {"earlier": 1} and entries[-1]["shards"] == 50 and len(entries) > 50
    assert path.stat().st_ino == file, "the same file: nothing was copied"


def test_an_entry_that_finds_no_room_is_taken_back_and_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an entry would be no JSON, and neither would the next one be that is added to it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = Folder(tmp_path)
    folder.append("metrics.jsonl", b"x" * 90 + b"\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError):
            folder.append("metrics.jsonl", b"y" * 90 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.read("metrics.jsonl") == b"x" * 90 + b"\n"
    (tmp_path / "pipe").mkdir()
    with pytest.raises(OSError, match="no ordinary file"):
        folder.append("pipe", b"y")


def test_figures_go_to_a_store_now_and_then(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store can't append, so each upload is of all entries: one in ten minutes and one at the end, and none lost."""
    monkeypatch.setattr(progress, "EVERY", 0)
    folder, uploads = RemoteFolder(f"{store}/figures"), []
    put = folder.file_system._put_file

    async def counted(*a: object, **k: object) -> None:
        uploads.append(a)
        await put(*a, **k)

    monkeypatch.setattr(folder.file_system, "_put_file", counted)
    folder.append("metrics.jsonl", b'{"earlier": 1}\n')
    told(folder, 50)
    assert len(uploads) == 2, "this one, and that at the end"
    entries = [json.loads(line) for line in folder.read("metrics.jsonl").decode().splitlines()]
    assert entries[0] == {"earlier": 1} and entries[-1]["shards"] == 50 and len(entries) > 50
    monkeypatch.setattr(progress, "STORED_EVERY", 0)
    told(folder, 5)
    assert len(uploads) > 6
