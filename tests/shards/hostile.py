"""Read a run of hostile content in every way, and say what comes up that is no line for the user."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, Plan
from pad_pipeline.records import ImageRecord, Planned
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.seal import check_seal
from pad_pipeline.shards.stats import as_json, read_statistics
from pad_pipeline.storage import Folder
from pad_pipeline.verify import verify_run
from tests.shards.builders import FIRST, planned, restored
from tests.shards.children import as_child
from tests.shards.damage import problems

DEEP = 100_000


def use(folder: Path, tar_alone: bool = False) -> list[str]:
    """Read a run in every way, or in those that open its tars; what came up beside UserError, which is how to say that
    something is wrong."""
    unexpected = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except UserError:
            pass
        except Exception as error:
            steps = [f for f in traceback.extract_tb(error.__traceback__) if "/pad_pipeline/" in f.filename]
            where = " > ".join(f"{Path(step.filename).name}:{step.lineno}" for step in steps)
            unexpected.append(f"{type(error).__name__} ({str(error)[:100]}) at {where}")

    def shards() -> None:
        found = ShardFolder(folder)
        for name in found.names:
            attempt(lambda name=name: samples(found, name))

    def ends_of_indexes() -> None:
        from pad_pipeline.workflows.runs.resume import scan

        found = ShardFolder(folder)
        attempt(lambda: scan(found.folder, found.run.identity, range(found.run.shards)))

    def samples(found: ShardFolder, name: str) -> None:
        for row in found.index(name):
            if row["status"] != "failed":
                sample = found.sample(name, row)
                sample.region_embeds()
                sample.patches("argmax")

    def plan() -> None:
        found = Plan(Folder(folder))
        for number in range(min(len(found), 50)):
            attempt(lambda number=number: found.shard(number))

    attempt(shards)
    if not tar_alone:
        attempt(ends_of_indexes)
        attempt(plan)
    attempt(lambda: list(verify_run(folder, deep=True)))
    attempt(lambda: as_json(read_statistics(open_shards(folder))))
    return unexpected


def run_of_one(good: str, scratch: str) -> tuple[Path, Run, ImageRecord]:
    """In a child: a run of the first image alone, to be written again and again; its facts and its record."""
    as_child()
    folder = Path(scratch)
    folder.mkdir()
    shards = ShardFolder(Path(good))
    record = restored(shards, FIRST)[0]
    planned(folder / PLAN_NAME, [Planned(record.id, record.source)], 1)
    facts = {"images": 1, "shards": 1, "shard_size": 1, "plan": check_seal((folder / PLAN_NAME).open("rb"))[0]}
    run = shards.run.model_copy(update=facts)
    run.write(Folder(folder))
    return folder, run, record


def look(folder: Path, what: str, damaged: bool) -> None:
    """Print what comes up beside UserError when a run is read, and whether verify overlooks what is wrong with it."""
    faulthandler.dump_traceback_later(8, exit=True)
    print(what, file=sys.stderr)  # the last one is the one that never ends
    troubles = use(folder, tar_alone=True)
    for trouble in troubles:
        print(f"{what}: {trouble}")
    if damaged and not troubles and not problems(folder):
        print(f"{what}: verify lets it through")
    faulthandler.cancel_dump_traceback_later()
