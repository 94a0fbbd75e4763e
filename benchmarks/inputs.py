"""How fast images come out of Parquet files and tars: `python -m benchmarks.inputs`.

pad plans them and reads each image by its address. Beside it, plain `pyarrow` and `webdataset` read the same files from
end to end. Each measurement runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.plan import peak_megabytes
from pad_pipeline.records import Place
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes

FILES = 100
PATTERNS = {"parquet": "*.parquet", "tar": "{000..099}.tar"}


def write_files(folder: Path, kind: str, rows: int, size: int) -> None:
    """Write 100 files with images of `size` random bytes and their captions."""
    random = np.random.default_rng(0)
    for number in range(FILES):
        numbers = range(number * rows // FILES, (number + 1) * rows // FILES)
        images = [random.bytes(size) for _ in numbers]
        texts = [f"a photograph of something on a table, number {row}" for row in numbers]
        if kind == "parquet":
            column = [{"bytes": image, "path": f"{row:09d}.jpg"} for row, image in zip(numbers, images, strict=True)]
            table = pa.table({"image": column, "text": texts})
            pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=1000)
            continue
        with tarfile.open(folder / f"{number:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, image, text in zip(numbers, images, texts, strict=True):
                for name, content in ((f"{row:09d}.jpg", image), (f"{row:09d}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def measure(what: str, kind: str, folder: Path) -> None:
    """In a process of its own: read, and print the number of images, seconds and megabytes."""
    began, images, total = time.monotonic(), 0, 0
    if what == "pyarrow":
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for batch in file.iter_batches(16, use_threads=False):
                    for row in batch.to_pylist():
                        images, total = images + 1, total + len(row["image"]["bytes"]) + len(row["text"])
    elif what == "webdataset":
        import webdataset as wds

        files = sorted(map(str, folder.glob("*.tar")))
        for sample in wds.WebDataset(files, shardshuffle=False):
            images, total = images + 1, total + len(sample["jpg"]) + len(sample["txt"])
    else:
        source = open_source(f"{folder}/{PATTERNS[kind]}")
        for planned in source:
            images, total = images + 1, total + len(planned.caption)
            if what == "pad, read":
                assert isinstance(planned.place, Place)
                total += len(read_bytes(source.root, planned.place, 1 << 20))
    print(json.dumps([images, time.monotonic() - began, peak_megabytes()]))


def main() -> None:
    """Make the files, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--bytes", type=int, default=500, help="of one image")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], asked.measure[1], Path(asked.measure[2]))
        return
    print(f"{FILES} files, images of {asked.bytes} bytes, on {os.cpu_count()} CPU cores, one process.\n")
    print("| form | what | images | seconds | images/s | peak MB |\n| --- | --- | --- | --- | --- | --- |")
    for kind, other in (("parquet", "pyarrow"), ("tar", "webdataset")):
        for rows in asked.rows:
            with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
                write_files(Path(home), kind, rows, asked.bytes)
                for what in ("pad, plan", "pad, read", other):
                    command = [sys.executable, "-m", "benchmarks.inputs", "--measure", what, kind, home]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    images, seconds, megabytes = json.loads(done.stdout)
                    assert images == rows, (what, images)
                    rate = images / seconds
                    print(
                        f"| {kind} | {what} | {images:,} | {seconds:.1f} | {rate:,.0f} | {megabytes:.0f} |", flush=True
                    )


if __name__ == "__main__":
    main()
