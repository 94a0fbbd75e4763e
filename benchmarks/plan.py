"""How long planning takes, and finding out what is finished: `python -m benchmarks.plan`. Time and memory by size.

Each measurement runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.plan import write_plan
from pad_pipeline.records import INDEX_SCHEMA, SCHEMA_VERSION, shard_name
from pad_pipeline.shards.seal import UNSEALED
from pad_pipeline.sources.open import open_source
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs.resume import scan

CHUNK = 100_000
IDENTITY = "0123456789abcdef"


def write_list(path: Path, rows: int) -> None:
    """A list of URLs with captions, as a crawl gives."""
    schema = pa.schema([("id", pa.string()), ("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else path.open("w") as sink:
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(start + CHUNK, rows))
            ids = [f"{number // 1000:06d}/{number:012d}" for number in numbers]
            urls = [f"https://images.example.org/{name}.jpg" for name in ids]
            captions = [f"a photograph of something on a table, number {number}" for number in numbers]
            if isinstance(sink, pq.ParquetWriter):
                sink.write_table(pa.table([ids, urls, captions], schema=schema))
            elif path.suffix == ".json":
                turns = [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}] for text in captions]
                records = zip(ids, urls, turns, strict=True)
                lines = [json.dumps({"id": name, "image": url, "conversations": t}) for name, url, t in records]
                sink.write(("[" if start == 0 else ",") + ",\n".join(lines))
            else:
                records_ = zip(ids, urls, captions, strict=True)
                sink.writelines(
                    json.dumps({"id": name, "url": url, "caption": text}) + "\n" for name, url, text in records_
                )
        if path.suffix == ".json":
            sink.write("]\n")


def write_shards(folder: Path, shards: int) -> None:
    """Finished shards of 512 images, but for their images."""
    totals = {"images": 512, "ok": 510, "empty": 1, "failed": 1, "tags": 4000, "regions": 2100}
    facts = {"schema_version": str(SCHEMA_VERSION), "run": IDENTITY, "tar_sha256": "0" * 64, "tar_bytes": "4"}
    schema = INDEX_SCHEMA.with_metadata(facts | {"totals": json.dumps(totals), "seal": UNSEALED})
    row = {field.name: "x" if pa.types.is_string(field.type) else 1 for field in INDEX_SCHEMA}
    pq.write_table(pa.Table.from_pylist([row] * 512, schema), folder / "first", compression="zstd")
    index = (folder / "first").read_bytes()
    (folder / "first").unlink()
    for number in range(shards):
        (folder / f"{shard_name(number)}.parquet").write_bytes(index)
        (folder / f"{shard_name(number)}.tar").write_bytes(b"tar\n")


def measure(what: str, path: str, number: int) -> None:
    """In a process of its own: print seconds and megabytes."""
    began = time.monotonic()
    if what == "scan":
        found = scan(Folder(Path(path)), IDENTITY, range(number))
        assert len(found.finished) == number and found.totals["images"] == 512 * number
    else:
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as out:
            facts = write_plan(open_source(path), Path(out, "plan.parquet"), 512, "sizes")
        assert facts.images == number
    print(json.dumps([time.monotonic() - began, peak_megabytes()]))


def peak_megabytes() -> float:
    """The most memory that this process had so far."""
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1000


def measured(what: str, path: Path, number: int) -> str:
    """One row of the table."""
    command = [sys.executable, "-m", "benchmarks.plan", "--measure", what, str(path), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout)
    rate = number / seconds
    return f"| {what} | {number:,} | {seconds:.1f} | {rate:,.0f} | {megabytes:.0f} |"


def main() -> None:
    """Make the inputs, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["parquet", "jsonl", "json"])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], asked.measure[1], int(asked.measure[2]))
        return
    print(f"Planning and resuming on {os.cpu_count()} CPU cores.\n")
    print("| what | rows or shards | seconds | per second | peak MB |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        for kind in asked.kinds:
            for rows in asked.rows:
                path = Path(home, f"list.{kind}")
                write_list(path, rows)
                print(measured(f"plan .{kind}", path, rows).replace("plan .json |", "plan LLaVA .json |"), flush=True)
                path.unlink()
        for shards in asked.shards:
            folder = Path(home, f"shards-{shards}")
            folder.mkdir()
            write_shards(folder, shards)
            print(measured("scan", folder, shards), flush=True)


if __name__ == "__main__":
    main()
