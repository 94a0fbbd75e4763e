"""Find the finished and the damaged shards in a run's folder, and check that new shards may be added to them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import pyarrow as pa

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, Plan, PlanRow
from pad_pipeline.records import shard_name
from pad_pipeline.retries import StoreError
from pad_pipeline.shards.reader import ShardFolder, index_facts, totals_in
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.seal import seal_problem
from pad_pipeline.storage import Folder
from pad_pipeline.threads import map_ahead
from pad_pipeline.workflows.runs.options import RunOptions

_SHARD_FILE = re.compile(r"pad-([0-9]{6}|[1-9][0-9]{6,8})\.(tar|parquet)")
_THREADS = 32
"""Threads that read the metadata of indexes from an object store, where each read takes a round trip."""


@dataclass
class Scan:
    """The shards in a folder, by their state."""

    finished: set[int] = field(default_factory=set)
    """Shards of this run with a tar and an undamaged index."""
    totals: Counter[str] = field(default_factory=Counter)
    """The counts of `TOTALS` over the finished shards."""
    with_failures: list[int] = field(default_factory=list)
    """Finished shards with failed images."""
    damaged: list[str] = field(default_factory=list)
    """Shards whose index can't be read, belongs to another run, or states another size of the tar."""
    incomplete: set[int] = field(default_factory=set)
    """Planned shards that have a file but are not finished."""
    uncommitted_files: list[str] = field(default_factory=list)
    """Files of shards that are not planned, tars without an index, and indexes without a tar."""


def own_shards(run: Run, options: RunOptions) -> range:
    """Return the numbers of the shards that the options ask for: all, or those of a part."""
    return options.share.shards(run.shards) if options.share else range(run.shards)


def is_file_of(numbers: range, name: str) -> bool:
    """Return whether a file belongs to one of the shards."""
    match = _SHARD_FILE.fullmatch(name)
    return bool(match) and int(cast("re.Match[str]", match)[1]) in numbers


def scan(folder: Folder, identity: str, numbers: range, others: bool = True) -> Scan:
    """Find the shards in a folder, and sort them by their state. This reads the metadata of each index.

    Args:
        folder: the run's folder.
        identity: `Run.identity` of the run.
        numbers: the planned shards to look at.
        others: whether files of other shards count as uncommitted.
    """
    result = Scan()
    sizes: dict[str, dict[int, int]] = {"tar": {}, "parquet": {}}
    for name, size in folder.files("pad-"):
        if match := _SHARD_FILE.fullmatch(name):
            if (number := int(match[1])) in numbers:
                sizes[match[2]][number] = size
            elif others:
                result.uncommitted_files.append(name)
    tars, indexes = sizes.values()
    for number in tars.keys() ^ indexes.keys() if folder.remote else ():  # a listing may lack a file written just now
        ending, files = ("tar", tars) if number in indexes else ("parquet", indexes)
        if folder.has(name := f"{shard_name(number)}.{ending}"):
            files[number] = folder.size(name)
    result.uncommitted_files += [f"{shard_name(number)}.tar" for number in sorted(tars.keys() - indexes.keys())]
    result.uncommitted_files += [f"{shard_name(number)}.parquet" for number in sorted(indexes.keys() - tars.keys())]

    def totals_of(number: int) -> dict[str, int] | None:
        return _totals(folder, identity, number, tars[number], indexes[number])

    whole = sorted(tars.keys() & indexes.keys())
    # On a disk, threads would only slow each other down.
    found = map_ahead(totals_of, whole, _THREADS, 4 * _THREADS) if folder.remote else map(totals_of, whole)
    for number, totals in zip(whole, found, strict=True):
        if totals is None:
            result.damaged.append(shard_name(number))
            continue
        result.finished.add(number)
        result.totals.update(totals)
        if totals["failed"]:
            result.with_failures.append(number)
    result.incomplete = (tars.keys() | indexes.keys()) - result.finished
    return result


def check_there(folder: Folder, numbers: Iterable[int]) -> None:
    """Check that both files of each shard in `numbers` are in the folder.

    Raises:
        UserError: a file is missing, because somebody or something deleted it during the run.
    """
    listed = {name for name, _ in folder.files("pad-")}
    files = (f"{shard_name(number)}.{ending}" for number in numbers for ending in ("tar", "parquet"))
    # A listing may be old. So the files that it lacks are asked for one by one.
    if gone := [name for name in files if name not in listed and not folder.has(name)]:
        more = f" (and {len(gone) - 1} more files)" if len(gone) > 1 else ""
        rule = f"{gone[0]}{more} is gone, although the run has written it"
        raise UserError("out", folder, rule, "find out what deletes files, then run the same command again")


def _totals(folder: Folder, identity: str, number: int, tar_bytes: int, index_bytes: int) -> dict[str, int] | None:
    """Return the counts of a shard, or None if it is damaged."""
    try:
        facts = index_facts(folder, shard_name(number), index_bytes)
        if facts.get(b"run") != identity.encode() or facts.get(b"tar_bytes") != str(tar_bytes).encode():
            return None
        return totals_in(facts)
    except StoreError:  # the index may be whole
        raise
    except (OSError, pa.ArrowException, ValueError):
        return None


def check_same(old: Run, new: Run, folder: Folder, new_plan: Plan, accept_code: bool) -> None:
    """Check that the run in `folder`, `old`, was made with the same inputs, settings, weights and code as `new`.

    Raises:
        UserError: the runs differ; the error lists up to eight differences.
    """
    differences = old.differences(new)
    if accept_code:
        differences = [line for line in differences if not line.startswith("fingerprints.code:")]
    if not differences:
        return
    if any(line.startswith("fingerprints.inputs:") for line in differences):
        differences.insert(0, f"images: {plan_difference(folder, new_plan)}")
    differences.sort(key=lambda line: line.startswith(("contents.", "fingerprints.inputs")))
    if len(differences) > 8:
        differences[8:] = [f"and {len(differences) - 8} more"]
    remedy = "repeat the run with its first inputs and settings; or keep it, and name a new folder with `fork`"
    if all(line.startswith("fingerprints.code:") for line in differences):
        remedy = "if the change affects no result, go on with `accept_changed_code`; or name a new folder with `fork`"
    raise UserError("out", folder, f"its shards were made with something else ({'; '.join(differences)})", remedy)


def plan_difference(folder: Folder, new: Plan) -> str:
    """Describe the first image in which the plan in the folder differs from a new plan."""
    if not folder.has(PLAN_NAME):
        return "the earlier plan is gone"
    old = Plan(folder)
    counts = f"{old.images} -> {new.images}; " if old.images != new.images else ""
    for old_row, new_row in zip(_rows(old), _rows(new), strict=False):
        for name in old_row:
            if old_row[name] != new_row[name] and name not in ("shard", "row"):
                where = f"{shard_name(old_row['shard'])} row {old_row['row']}, {name}"
                change = f"{_short(old_row[name])} -> {_short(new_row[name])}"
                return f"{counts}the first that differs is {where}: {change}"
    return counts + ("the rest is the same" if counts else "another number of images in a shard")


def _rows(plan: Plan) -> Iterator[PlanRow]:
    return (row for number in range(len(plan)) for row in plan.rows(number))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_repaired(old: Run, new: Run, folder: Folder, new_plan: Plan, accept_code: bool, existing: Scan) -> None:
    """Check the runs as `check_same` does, but allow changes to failed images, which the user may have repaired.

    Raises:
        UserError: the runs differ in something else.
    """
    if not old.differences(new):
        return
    old_plan, shards = Plan(folder), ShardFolder(folder)
    rows = (row for number in existing.with_failures for row in shards.index(shard_name(number)))
    failed = {row["key"] for row in rows if row["status"] == "failed"}
    if (old_plan.images, old_plan.shard_size) == (new_plan.images, new_plan.shard_size) and all(
        old_row == new_row or old_row["key"] in failed
        for number in sorted(existing.finished)
        for old_row, new_row in zip(old_plan.rows(number), new_plan.rows(number), strict=True)
    ):
        kept = {key: value for key, value in old.contents.items() if key not in failed}
        old = old.model_copy(
            update={
                "fingerprints": old.fingerprints | {"inputs": new.fingerprints["inputs"]},
                "contents": new.contents if all(new.contents.get(key) == kept[key] for key in kept) else old.contents,
            }
        )
    check_same(old, new, folder, new_plan, accept_code)


def copy_finished_shards(old_folder: Folder, folder: Folder, run: Run, numbers: range) -> int:
    """Copy from another run the shards of `numbers` that are finished there and would come out the same in `run`.
    Return how many were copied.

    Such shards have the same images, settings, weights and code.
    """
    old = Run.read(old_folder)
    if old.identity != run.identity or {old.fingerprints.get("code"), *old.accepted_code} != {run.fingerprints["code"]}:
        return 0
    stale = {key for key, sha256 in old.contents.items() if run.contents.get(key, sha256) != sha256}
    old_plan, plan = Plan(old_folder), Plan(folder)
    copied = 0
    own = range(numbers.start, min(numbers.stop, old.shards))
    for number in sorted(scan(old_folder, old.identity, own).finished):
        name = shard_name(number)
        if folder.has(f"{name}.parquet"):
            continue
        rows = old_plan.rows(number)
        if rows == plan.rows(number) and not any(row["key"] in stale for row in rows):
            copied += _copy_sound(old_folder, folder, name)
    return copied


def _copy_sound(old_folder: Folder, folder: Folder, name: str) -> bool:
    """Copy a shard, unless its files have changed since they were written. Return whether it was copied."""
    index, digest = old_folder.read(f"{name}.parquet"), hashlib.sha256()
    if seal_problem(index):
        return False
    tar = f"{name}.tar"
    with folder.commit(tar) as partial_tar, old_folder.open(tar) as source, partial_tar.open("wb") as sink:
        while piece := source.read(1 << 20):
            digest.update(piece)
            sink.write(piece)
    if digest.hexdigest().encode() != index_facts(old_folder, name).get(b"tar_sha256", b""):
        folder.delete(tar)
        return False
    with folder.commit(f"{name}.parquet") as partial_index:
        partial_index.write_bytes(index)
    return True
