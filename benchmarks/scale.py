"""What 100 million images (200,000 shards of 512) take of the driver: `python -m benchmarks.scale`.

Each row is measured at two sizes, each in a process of its own, and the last three columns extend it in a straight line
to 100 million images. The images are made up, so that only the driver's own work counts. An object store is another
process on the same cores: of such a row, the seconds are the store's too, and the CPU seconds are the driver's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.plan import IDENTITY, peak_megabytes, write_list, write_shards
from pad_pipeline.geometry import View
from pad_pipeline.plan import PLAN_NAME, Plan, write_plan
from pad_pipeline.records import Place, Planned, Shard, shard_name
from pad_pipeline.shards.seal import check_seal
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.open import open_source
from pad_pipeline.storage import Folder, folder_at
from pad_pipeline.workflows.engine.chain import Done, Link, Operation
from pad_pipeline.workflows.runs.build import carry_out
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.resume import scan
from pad_pipeline.workflows.runs.shard_io import ReadShard
from pad_pipeline.workflows.runs.spec import RunSpec

SHARD, IMAGES, SHARDS = 512, 100_000_000, 200_000
LATENCY = 0.02
"""Seconds that the made-up object store takes for an answer."""


class MadeUp:
    """A source of so many images."""

    def __init__(self, images: int) -> None:
        self.images, self.origin, self.root, self.counts = images, "made up", "/nowhere", Tally()

    def __iter__(self) -> Iterator[Planned]:
        for number in range(self.images):
            name = f"{number // 1000:06d}/{number:012d}"
            caption = f"a photograph of something on a table, number {number}"
            yield Planned(name, f"{name}.jpg", caption, place=Place("", size=100_000))


class Nothing:
    """The last operation of a chain that writes nothing."""

    def __call__(self, shard: Shard) -> Done:
        """Count the images as ok."""
        return Done(shard.number, {"images": len(shard.rows), "ok": len(shard.rows)})


def plan_list(kind: str) -> Callable[[Path, int], None]:
    """Plan a list of URLs with captions."""

    def work(home: Path, number: int) -> None:
        assert write_plan(open_source(home / f"list.{kind}"), home / PLAN_NAME, SHARD, "sizes").images == number

    return work


def plan_store(home: Path, number: int) -> None:
    """Plan a folder of an object store."""
    facts = write_plan(open_source("s3://bucket/images"), home / PLAN_NAME, SHARD, "sizes")
    assert facts.images == number


def keep_plan(home: Path, number: int) -> None:
    """What `--fingerprint kept` does with the plan in the folder: check its seal, find the sample's 64 rows."""
    folder = Folder(home)
    with folder.open(PLAN_NAME) as stream:
        assert not check_seal(stream)[1]
    plan = Plan(folder)
    keys = [plan.rows(n * len(plan) // 64)[0]["key"] for n in range(64)]
    assert len(plan.sample("/nowhere", keys)[0]) == len(set(keys)) and plan.images == number


def scan_disk(home: Path, number: int) -> None:
    """Find the finished shards on a disk."""
    assert len(scan(Folder(home), IDENTITY, range(number)).finished) == number


def scan_store(home: Path, number: int) -> None:
    """Find the finished shards in an object store."""
    assert len(scan(folder_at("s3://bucket/run"), IDENTITY, range(number)).finished) == number


def drive(home: Path, number: int) -> None:
    """Run all shards of a plan through a chain without stages, in the driver."""
    view = View()

    def chain(folder: Folder, identity: str, images: int, threads: int) -> list[Link]:
        return [Link("nothing", [Operation("read", lambda: ReadShard(folder)), Operation("write", Nothing)])]

    spec = RunSpec("build", view, 1, {}, {}, chain)
    options = RunOptions(shard_size=SHARD, depth="names")
    assert carry_out(spec, MadeUp(number), Folder(home / "out"), options)["images"] == number


def made_list(kind: str) -> Callable[[Path, int], None]:
    """Make a list of URLs with captions."""
    return lambda home, number: write_list(home / f"list.{kind}", number)


def nothing(home: Path, number: int) -> None:
    """Make no input."""


def made_plan(home: Path, number: int) -> None:
    """Make a plan."""
    write_plan(MadeUp(number), home / PLAN_NAME, SHARD, "sizes")


class Row:
    """A row of the table: what is measured, its input, its sizes, and the size to extend to."""

    def __init__(
        self,
        title: str,
        make: Callable[..., None],
        work: Callable[..., None],
        sizes: str,
        whole: int,
        store: bool = False,
    ) -> None:
        self.title, self.make, self.work, self.sizes, self.whole, self.store = title, make, work, sizes, whole, store


ROWS = {
    "parquet": Row("plan a Parquet list of URLs", made_list("parquet"), plan_list("parquet"), "rows", IMAGES),
    "json": Row("plan a LLaVA JSON", made_list("json"), plan_list("json"), "rows", IMAGES),
    "listing": Row("plan a folder of an object store", nothing, plan_store, "objects", IMAGES, store=True),
    "kept": Row("resume: the plan is kept", made_plan, keep_plan, "rows", IMAGES),
    "scan": Row("resume: find finished shards, disk", write_shards, scan_disk, "shards", SHARDS),
    "scan-store": Row(
        "resume: find finished shards, object store", nothing, scan_store, "finished", SHARDS, store=True
    ),
    "drive": Row("plan, then drive all shards", nothing, drive, "driven", IMAGES),
}


@contextmanager
def store_of(home: Path, number: int) -> Iterator[dict[str, str]]:
    """Yield the environment in which an object store of so many objects is found; it is a process of its own."""
    write_shards(home, 1)
    index = (home / f"{shard_name(0)}.parquet").read_bytes()
    command = [sys.executable, "-m", "benchmarks.bucket", str(number), str(LATENCY), str(len(index))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        server.stdin.write(index)
        server.stdin.flush()
        address = server.stdout.readline().decode().strip()
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        yield {"AWS_ENDPOINT_URL": address, **dict.fromkeys(names, "us-east-1")}
        server.stdin.close()


def measured(name: str, number: int) -> list[float]:
    """Seconds, CPU seconds and peak megabytes of a row at one size."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as folder:
        home = Path(folder)
        row.make(home, number)
        command = [sys.executable, "-m", "benchmarks.scale", "--measure", name, folder, str(number)]
        if not row.store:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        else:
            with store_of(home, number) as there:
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | there)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def line_of(row: Row, sizes: list[int], found: list[list[float]]) -> str:
    """One line of the table."""
    (small, large), last = sizes, found[1]
    more = [max(b - a, 0) / (large - small) for a, b in zip(*found, strict=True)]
    wall, work, megabytes = (value + slope * (row.whole - large) for value, slope in zip(last, more, strict=True))
    at = [f"{n:,} | {s:.1f} | {c:.1f} | {m:.0f}" for n, (s, c, m) in zip(sizes, found, strict=True)]
    return f"| {row.title} | {' | '.join(at)} | {wall / 60:.1f} | {work / 60:.1f} | {megabytes / 1000:.2f} |"


def main() -> None:
    """Measure each row at both sizes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[500_000, 2_000_000])
    parser.add_argument("--objects", type=int, nargs=2, default=[600_000, 1_200_000])
    parser.add_argument("--shards", type=int, nargs=2, default=[4_000, 40_000])
    parser.add_argument("--finished", type=int, nargs=2, default=[1_000, 5_000], help="shards in an object store")
    parser.add_argument("--driven", type=int, nargs=2, default=[250_000, 1_000_000], help="images of a whole run")
    parser.add_argument("--only", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked: Any = parser.parse_args()
    if asked.measure:
        name, home, number = asked.measure
        began, used = time.monotonic(), time.process_time()
        ROWS[name].work(Path(home), int(number))
        print(json.dumps([time.monotonic() - began, time.process_time() - used, peak_megabytes()]))
        return
    print(f"{date.today()}; {platform.machine()}, {os.cpu_count()} CPU cores; `python -m benchmarks.scale`.\n")
    heads = [*("what", *("size", "s", "CPU s", "peak MB") * 2), "minutes", "CPU minutes", "GB"]
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for name in asked.only:
        sizes = getattr(asked, ROWS[name].sizes)
        print(line_of(ROWS[name], sizes, [measured(name, number) for number in sizes]), flush=True)


if __name__ == "__main__":
    main()
