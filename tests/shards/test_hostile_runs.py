"""No command trips over a run with hostile facts, a strange name, or files of a stranger beside its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pad_pipeline.plan import PLAN_NAME, PLAN_SCHEMA, Plan
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.shards.stats import as_json, read_statistics
from pad_pipeline.storage import Folder
from tests.shards.builders import FIRST, SECOND
from tests.shards.conftest import Pad, Runs
from tests.shards.damage import Change, plainly, reseal, rewrite
from tests.shards.hostile import DEEP


def plan_of(shard_size: str) -> Change:
    """The plan with another size of shards, sealed again, and known to run.json."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / PLAN_NAME)
        schema = PLAN_SCHEMA.with_metadata({"shard_size": shard_size, "seal": UNSEALED})
        pq.write_table(table.cast(schema), folder / PLAN_NAME)
        run = Run.read(Folder(folder))
        run.model_copy(update={"plan": seal(folder / PLAN_NAME)}).write(Folder(folder))

    return change


def facts_of_run(**facts: Any) -> Change:
    """run.json with other facts, sealed again."""

    def change(folder: Path) -> None:
        run = Run.read(Folder(folder))
        run.model_copy(update=facts).write(Folder(folder))

    return change


def not_text(folder: Path) -> None:
    """A plan whose captions are no UTF-8."""
    content = plainly(folder / PLAN_NAME)
    caption = Plan(Folder(folder)).rows(0)[0]["caption"].encode()
    (folder / PLAN_NAME).write_bytes(content.replace(caption, b"\xff" * len(caption)))


HOSTILE: dict[str, Change] = {
    "shards of no image": plan_of("0"),
    "shards of less than none": plan_of("-4"),
    "shards of words": plan_of("four"),
    "shards of one": plan_of("1"),
    "shards of everything": plan_of("9" * 30),
    "captions that are no text": not_text,
    "plan is a folder": lambda folder: [(folder / PLAN_NAME).unlink(), (folder / PLAN_NAME).mkdir()],
    "counts in markup": facts_of_run(counts={"[/red]": 1}),
    "environment in markup": facts_of_run(environment={"[/red]": "[/b]"}),
    "settings in markup": facts_of_run(settings={"[/red]": "[/b]"}),
    "number of shards without end": facts_of_run(shards=10**300, images=10**300),
    "embeddings without end": facts_of_run(embedding_width=10**30),
    "totals are deep": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="[" * DEEP),
    "totals are empty": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="{}"),
    "totals are infinite": lambda folder: reseal(
        folder / f"{FIRST}.parquet", totals=json.dumps(dict.fromkeys(("images", "failed"), float("inf")))
    ),
    "totals are a list": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="[1]"),
    "totals are text": lambda folder: reseal(folder / f"{FIRST}.parquet", totals='{"images": "many", "failed": "0"}'),
    "size of the tar is words": lambda folder: reseal(folder / f"{FIRST}.parquet", tar_bytes="many"),
    "labels in markup": lambda folder: rewrite(folder, lambda record: setattr(record.regions[0], "label", "[/red]")),
    "reason in markup": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(reason="[/red]\x1b[31m", stage="[/b]", source="[/i]")
    ),
    "values missing": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(dict.fromkeys(("reason", "stage", "source", "id")))
    ),
    "numbers missing": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[0].update(dict.fromkeys(("tags", "regions", "labels")))
    ),
    "status missing": lambda folder: reseal(folder / f"{SECOND}.parquet", lambda rows: rows[0].update(status=None)),
    "lock is no text": lambda folder: (folder / ".lock").write_bytes(b"\xff\xfe" * 999),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_command_trips_over_a_hostile_run(name: str, runs: Runs, folder: Path, pad: Pad) -> None:
    """Folders made by somebody who knows the format. `stats`, `verify` and a rerun say in a line what is wrong, or go
    on; no traceback, no control characters, no markup (a folder's text in brackets ended `pad stats`)."""
    pristine = folder.with_name("pristine")
    HOSTILE[name](folder)
    shutil.copytree(folder, pristine)
    for command in (
        ["stats", folder],
        ["stats", folder, "--json"],
        ["verify", folder],
        [*runs.command, "--out", folder],
    ):
        done = pad(*command)
        assert done.code in (0, 1, 2), command[0]
        assert "Traceback" not in done.out + done.err
        assert "\x1b[31m" not in done.out
        assert done.code < 2 or done.err.strip().count("\n") == 0, done.err
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)


def test_a_folder_may_have_any_name(runs: Runs, pad: Pad, tmp_path: Path) -> None:
    """Square brackets are markup to the library that prints: a run into `out[/b]` ended in a traceback after its last
    shard, and of `[old]` nothing was shown."""
    out = tmp_path / "a [old] [/b] 日 %s {0}"
    for command in ([*runs.command, "--out", out], ["verify", out], ["stats", out]):
        done = pad(*command)
        assert done.code == 0, (command[0], done.err)
        assert command[0] == "verify" or "[old]" in done.out + done.err, command[0]


def test_a_stray_index_alters_nothing_that_readers_see(folder: Path) -> None:
    """`pad-0000000.parquet` (seven digits) and `pad-٠٠٠٠٠٠.parquet` (other digits) are nobody's shards: readers took
    them for another 0 and saw its images twice; a rerun took them for a half of it and made it anew."""
    from pad_pipeline.workflows.runs.resume import scan

    before = as_json(read_statistics(open_shards(folder)))
    run = Run.read(Folder(folder))
    for stem in ("pad-0000000", "pad-٠٠٠٠٠٠"):
        shutil.copy(folder / f"{FIRST}.parquet", folder / f"{stem}.parquet")
        (folder / f"{stem}.tar").write_bytes(b"stray")
    assert as_json(read_statistics(open_shards(folder))) == before
    found = scan(Folder(folder), run.identity, range(run.shards))
    assert (sorted(found.finished), found.damaged) == ([0, 1], [])
