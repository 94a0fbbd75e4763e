"""Checks the files of a run: no image is lost or repeated, and no byte has changed since the files were written."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.masks import check_sizes, decode_mask
from pad_pipeline.parquet import open_parquet
from pad_pipeline.plan import PLAN_NAME, Plan
from pad_pipeline.records import INDEX_SCHEMA, MEMBERS, IndexRow, SampleJson, shard_name
from pad_pipeline.retries import StoreError
from pad_pipeline.shards.keys import KeyHashes, is_key, scratch_folder
from pad_pipeline.shards.reader import load_npy, totals_in
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import check_seal, seal_problem
from pad_pipeline.shards.writer import TOTALS
from pad_pipeline.storage import Folder, folder_at
from pad_pipeline.threads import OverShards, map_shards

_LEFT_OUT = {
    "annotate": re.compile(r"[1-9]\d* of [1-9]\d* annotations are left out: .+"),
    "captions": re.compile(r"only the first [\d,]+ characters of its texts are read for tags"),
}
"""What the index says of an image of which a part was left out, by stage."""
_NO_SAMPLE: IndexRow = dict.fromkeys((f"{member}_at" for member in MEMBERS), -1)
_NO_SAMPLE |= dict.fromkeys((*(f"{member}_bytes" for member in MEMBERS), "tags", "regions", "labels"), 0) | {
    "sha256": ""
}
"""The columns of the index that describe a sample, for an image that failed."""
_FROM_PLAN = itemgetter("key", "id", "source")
_Planned = tuple[str, str, str]
"""Key, id and source of a planned image, as the index must have them."""


def verify_run(
    shards: str | Path | Folder, deep: bool = False, over: OverShards | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the problems of each part of a run: run.json, the plan, each planned shard, and other files.

    Every planned image must be stored exactly once: keys are unique in the plan, each index lists the images of its
    shard as the plan does, and each tar holds exactly the members that its index lists.

    With `deep`, every image and mask is decoded, and every coverage is computed again. Shards are checked through
    `over`, see `map_shards`. Raise `UserError` if the folder or URL `shards` holds no run, or if its plan can't be
    read.
    """
    folder = folder_at(shards)
    run = Run.read(folder)
    yield RUN_NAME, [problem] if (problem := seal_problem(folder.read(RUN_NAME))) else []
    plan = Plan(folder)
    yield PLAN_NAME, list(_check_plan(folder, plan, run))
    with scratch_folder() as scratch:
        keys = KeyHashes(Path(scratch))

        def planned() -> Iterator[tuple[str, list[_Planned]]]:
            for number in range(len(plan)):
                rows = [_FROM_PLAN(row) for row in plan.rows(number)]
                keys.add([key for key, *_ in rows])
                yield shard_name(number), rows

        yield from map_shards(over, partial(_problems, folder, run, deep), planned())
        if repeated := keys.repeated().tolist():
            yield PLAN_NAME, [f"{len(repeated)} images have the key of an earlier image, first image {repeated[0]}"]
    expected = {f"{shard_name(number)}.{ending}" for number in range(len(plan)) for ending in ("tar", "parquet")}
    if strays := sorted(name for name, _ in folder.files() if name.startswith("pad-") and name not in expected):
        yield str(folder), [f"{stray}: it belongs to no planned shard" for stray in strays]


def _check_plan(folder: Folder, plan: Plan, run: Run) -> Iterator[str]:
    with folder.open(PLAN_NAME) as stream:
        stated, problem = check_seal(stream)
    if problem:
        yield problem
    elif stated != run.plan:
        yield "it is not the plan of this run: run.json states another seal"
    if (len(plan), plan.images, plan.shard_size) != (run.shards, run.images, run.shard_size):
        yield f"it has {plan.images} images in {len(plan)} shards; run.json states {run.images} in {run.shards}"


def _problems(folder: Folder, run: Run, deep: bool, shard: tuple[str, list[_Planned]]) -> tuple[str, list[str]]:
    name, planned = shard
    problems: list[str] = []
    try:
        problems += _check_shard(folder, name, planned, run, deep)  # `+=` keeps the problems found before an exception
    except StoreError:
        raise
    except Exception as error:  # parsers of unknown bytes may raise anything
        problems.append(f"its index or its tar can't be read ({type(error).__name__}: {error})")
    return name, problems


def _check_shard(folder: Folder, name: str, planned: list[_Planned], run: Run, deep: bool) -> Iterator[str]:
    if not folder.has(f"{name}.parquet"):
        yield "it is not finished: its index is missing"
        return
    content = folder.read(f"{name}.parquet")
    if problem := seal_problem(content):
        yield f"its index: {problem}"
    file = open_parquet(io.BytesIO(content))
    if file.metadata.num_rows != len(planned):
        yield f"its index does not list the planned images: it has {file.metadata.num_rows} rows for {len(planned)}"
        return
    index = file.read(use_threads=False)
    rows = index.to_pylist()
    if index.schema.names != INDEX_SCHEMA.names or index.schema.types != INDEX_SCHEMA.types:
        yield "its index has other columns than this version of pad writes"
        return
    if [*map(_FROM_PLAN, rows)] != planned:
        yield "its index does not list the planned images in the planned order"
    facts = index.schema.metadata or {}
    totals = Counter({"images": len(rows)})
    for row in rows:
        totals.update({row["status"]: 1, "tags": row["tags"] or 0, "regions": row["regions"] or 0})
    try:
        stated = totals_in(facts)
    except ValueError:
        stated = {}
    if stated != {name: totals[name] for name in TOTALS}:
        yield "its index states other totals than its rows have"
    if facts.get(b"run") != run.identity.encode():
        yield "its index was written by a run with other settings or weights"
    if not folder.has(f"{name}.tar"):
        yield "its tar is missing"
        return
    digest, size = hashlib.sha256(), str(folder.size(f"{name}.tar"))
    with folder.open(f"{name}.tar") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    if (digest.hexdigest().encode(), size.encode()) != (facts.get(b"tar_sha256"), facts.get(b"tar_bytes")):
        expected = facts.get(b"tar_bytes", b"unknown").decode(errors="replace")
        difference = f"{size} bytes instead of {expected}" if size != expected else "sha256 differs"
        yield f"its tar has changed since it was written: {difference}"
    yield from _check_members(folder, name, rows, run, deep)


def _check_members(folder: Folder, name: str, rows: list[IndexRow], run: Run, deep: bool) -> Iterator[str]:
    by_name: dict[str, tuple[IndexRow, str]] = {}
    for row in rows:
        if not is_key(row["key"]):
            yield f"{row['key']!r}: it is not a key that pad writes"
        if row["status"] not in ("ok", "empty", "failed"):
            yield f"{row['key']}: its status is {row['status']!r}"
        if row["status"] == "failed":
            if not (row["stage"] and row["reason"]):
                yield f"{row['key']}: it failed, without a stage or a reason"
            if any(row[name] != value for name, value in _NO_SAMPLE.items()):
                yield f"{row['key']}: it failed, and the index describes a sample"
            continue
        stage, reason = row["stage"], row["reason"]
        if (stage or reason) and not (stage in _LEFT_OUT and _LEFT_OUT[stage].fullmatch(reason)):
            yield f"{row['key']}: it did not fail, and the index states a reason of {stage!r} ({reason})"
        by_name |= {f"{row['key']}.{ending}": (row, member) for member, ending in MEMBERS.items()}
    contents: dict[str, dict[str, bytes]] = {}
    try:
        with folder.open(f"{name}.tar") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            size, end = folder.size(f"{name}.tar"), 0
            for info in tar:
                if not end <= info.offset < info.offset_data + info.size <= size:
                    raise ValueError(f"{info.name!r} overlaps the member before it, or ends outside the tar")
                end = info.offset_data + info.size
                if info.name not in by_name or not info.isreg():
                    yield f"{info.name!r}: it is not in the index, it is repeated, or it is not a regular file"
                    continue
                row, member = by_name.pop(info.name)
                if (info.offset_data, info.size) != (row[f"{member}_at"], row[f"{member}_bytes"]) or info.issparse():
                    yield f"{info.name}: it does not lie where the index says"
                    continue
                data = tar.extractfile(info)
                contents.setdefault(row["key"], {})[member] = data.read() if data else b""
                if len(contents[row["key"]]) == len(MEMBERS):
                    yield from _check_sample(row, contents.pop(row["key"]), run, deep)
    except StoreError:
        raise
    except Exception as error:  # parsers of unknown bytes may raise anything
        yield f"its tar can't be read to the end ({type(error).__name__}: {error})"
    for name in by_name:
        yield f"{name}: it is in the index and not in the tar"


def _check_sample(row: IndexRow, members: dict[str, bytes], run: Run, deep: bool) -> Iterator[str]:
    key = row["key"]
    if hashlib.sha256(b"".join(members[member] for member in MEMBERS)).hexdigest() != row["sha256"]:
        yield f"{key}: sha256 differs"
    try:
        meta = json.loads(members["json"], parse_constant=_no_number)
        regions, tags = len(meta["regions"]), len(meta["tags"])
        named = [entry for region in meta["regions"] for entry in (region, *region["alternates"])]
        labels = len({entry["label"] for entry in named})
        coverage = load_npy(members["masks"], (regions, run.view.grid, run.view.grid), np.uint8)
        embeds = load_npy(members["embeds"], (labels, run.embedding_width), np.float16)
        size = meta["width"], meta["height"]
        check_sizes(meta)
        rows_used = {entry["embedding"] for entry in named}
    except Exception as error:  # parsers of unknown bytes may raise anything
        yield f"{key}: a member can't be read ({type(error).__name__}: {error})"
        return
    if size != (row["width"], row["height"]):
        yield f"{key}: its JSON states another size than the index"
    if not np.isfinite(embeds).all():
        yield f"{key}: an embedding is not finite"
    if row["tags"] != tags:
        yield f"{key}: the index states another number of tags"
    if (row["regions"], row["labels"]) != (regions, labels) or rows_used != set(range(labels)):
        yield f"{key}: the index states another number of regions or labels"
    if (row["status"] == "ok") != (regions > 0):
        yield f"{key}: its status is {row['status']!r} with {regions} regions"
    if deep:
        try:
            yield from (f"{key}: {problem}" for problem in _check_deep(members["image"], meta, coverage, run))
        except Exception as error:  # parsers of unknown bytes may raise anything
            yield f"{key}: it can't be decoded ({type(error).__name__}: {error})"


def _check_deep(image: bytes, meta: SampleJson, coverage: np.ndarray, run: Run) -> Iterator[str]:
    """Decode the image and each mask, compute each coverage again, and compare the results with the stored values."""
    try:
        decoded, kind = decode(image, DecodeSettings.model_validate(run.settings.get("decode", {})))
    except ValueError as error:
        yield f"its image can't be decoded ({error})"
        return
    width, height = decoded.size
    if (meta["width"], meta["height"], meta["format"]) != (width, height, kind):
        stated = f"{meta['format']} of {meta['width']} x {meta['height']}"
        yield f"its JSON states {stated}, but it is {kind} of {width} x {height}"
    for number, (region, stored) in enumerate(zip(meta["regions"], coverage, strict=True)):
        try:
            mask = decode_mask(region["rle"], width, height)
            x0, y0, x1, y1 = region["box"]
            inside = 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
        except (ValueError, KeyError, TypeError) as error:
            yield f"region {number} can't be read ({type(error).__name__}: {error})"
            continue
        if not inside:
            yield f"region {number}: its box {region['box']} does not lie in the image"
        if not np.array_equal(run.view.coverage(mask), stored):
            yield f"region {number}: its coverage does not agree with its mask"


def _no_number(name: str) -> None:
    """Reject NaN and Infinity, which Python's reader accepts, but which are not JSON."""
    raise ValueError(f"{name} is not JSON")
