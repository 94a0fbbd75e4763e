"""Check every shard of a run against its index and its plan."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, Plan
from pad_pipeline.records import INDEX_SCHEMA, shard_name
from pad_pipeline.shards.reader import load_npy
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.writer import MEMBERS


def verify_run(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each planned shard in turn, with what is wrong with it; at last what should not be in the folder.

    Raises:
        UserError: the folder holds no run, or its plan can't be read.
    """
    run = Run.read(folder)
    try:
        plan = Plan(folder / PLAN_NAME)
        planned = list(plan.keys())
    except (OSError, pa.ArrowException, KeyError) as error:
        rule = f"the plan can't be read ({error})"
        raise UserError("shards", folder / PLAN_NAME, rule, "build it again into a new folder") from error
    for number, keys in enumerate(planned):
        name = shard_name(number)
        yield name, list(_check_shard(folder, name, keys, run))
    expected = {f"{shard_name(number)}.{ending}" for number in range(len(planned)) for ending in ("tar", "parquet")}
    strays = sorted(path.name for path in folder.glob("pad-*") if path.name not in expected)
    problems = [f"{stray}: no such shard is planned" for stray in strays]
    if len(planned) != run.shards or plan.images != run.images:
        problems.append(
            f"the plan has {plan.images} images in {len(planned)} shards, run.json {run.images} in {run.shards}"
        )
    if problems:
        yield folder.name, problems


def _check_shard(folder: Path, name: str, keys: list[str], run: Run) -> Iterator[str]:
    tar_path, index_path = folder / f"{name}.tar", folder / f"{name}.parquet"
    if not index_path.is_file():
        yield "it is not finished: its index is missing"
        return
    try:
        index = pq.read_table(index_path)
    except (OSError, pa.ArrowException) as error:
        yield f"its index can't be read ({error})"
        return
    if index.schema.names != INDEX_SCHEMA.names:
        yield "its index has other columns than this version of pad writes"
        return
    rows = index.to_pylist()
    if [row["key"] for row in rows] != keys:
        yield "its index does not list the planned images in the planned order"
    if not tar_path.is_file():
        yield "its tar is missing"
        return
    noted = index.schema.metadata or {}
    with tar_path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest.encode() != noted.get(b"tar_sha256"):
        size, expected = str(tar_path.stat().st_size), noted.get(b"tar_bytes", b"unknown").decode(errors="replace")
        yield "its tar is not the one that was written: " + (
            f"{size} bytes instead of {expected}" if size != expected else "sha256 differs"
        )
    yield from _check_members(tar_path, rows, run)


def _check_members(tar_path: Path, rows: list[dict[str, Any]], run: Run) -> Iterator[str]:
    """The tar's members against the index, one by one."""
    by_name: dict[str, tuple[dict[str, Any], str]] = {}
    for row in rows:
        if row["status"] not in ("ok", "empty", "failed"):
            yield f"{row['key']}: its status is {row['status']!r}"
        if row["status"] == "failed":
            if not (row["stage"] and row["reason"]):
                yield f"{row['key']}: it failed, without a stage or a reason"
            continue
        by_name |= {f"{row['key']}.{ending}": (row, member) for member, ending in MEMBERS.items()}
    contents: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(tar_path, "r:") as tar:
            for info in tar:
                if info.name not in by_name or not info.isreg():
                    yield f"{info.name!r}: it is in the tar and not in the index, or no plain file"
                    continue
                row, member = by_name.pop(info.name)
                if (info.offset_data, info.size) != (row[f"{member}_at"], row[f"{member}_bytes"]):
                    yield f"{info.name}: it does not lie where the index says"
                stream = tar.extractfile(info)
                contents.setdefault(row["key"], {})[member] = stream.read() if stream else b""
                if len(contents[row["key"]]) == len(MEMBERS):
                    yield from _check_sample(row, contents.pop(row["key"]), run)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"its tar can't be read to the end ({error})"
    for name in by_name:
        yield f"{name}: it is in the index and not in the tar"


def _check_sample(row: dict[str, Any], members: dict[str, bytes], run: Run) -> Iterator[str]:
    key, digest = row["key"], hashlib.sha256()
    for member in MEMBERS:
        digest.update(members[member])
    if digest.hexdigest() != row["sha256"]:
        yield f"{key}: sha256 differs"
    try:
        meta = json.loads(members["json"], parse_constant=_no_number)
        with Image.open(io.BytesIO(members["image"])) as image:
            image.verify()
        regions = len(meta["regions"])
        named = [one for region in meta["regions"] for one in (region, *region["alternates"])]
        labels = len({one["label"] for one in named})
        coverage = load_npy(members["masks"], (regions, run.view.grid, run.view.grid))
        embeds = load_npy(members["embeds"], (labels, run.embedding_width))
        sizes_agree = (meta["width"], meta["height"]) == (row["width"], row["height"])
        rows_used = {one["embedding"] for one in named}
    except Exception as error:  # outside bytes: whatever a parser trips over is what is wrong
        yield f"{key}: a member can't be read ({type(error).__name__}: {error})"
        return
    if not sizes_agree:
        yield f"{key}: its JSON says another size than the index"
    if (coverage.dtype, embeds.dtype) != (np.uint8, np.float16):
        yield f"{key}: masks and embeds are {coverage.dtype} and {embeds.dtype}, and should be uint8 and float16"
    if not np.isfinite(embeds).all():
        yield f"{key}: an embedding is not finite"
    if (row["regions"], row["labels"]) != (regions, labels) or rows_used != set(range(labels)):
        yield f"{key}: regions or labels are not as many as the index says"
    if (row["status"] == "ok") != (regions > 0):
        yield f"{key}: its status is {row['status']!r} with {regions} regions"


def _no_number(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no JSON")
