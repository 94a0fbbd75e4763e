"""The facts about a run in its report: settings, models, fingerprints."""

from __future__ import annotations

from pad_pipeline.facts import flat
from pad_pipeline.report.tally import Tally
from pad_pipeline.shards.provenance import models


def run_facts(tally: Tally) -> dict[str, list[tuple[str, str]]]:
    """Return the tables of a run's facts, by title: rows of a name and a value. Empty tables are left out."""
    shards, run, view = tally.shards, tally.shards.run, tally.shards.run.view
    run_rows = [
        ("where", str(shards.folder)),
        ("made by", f"pad {'import coco' if run.kind == 'import-coco' else run.kind}"),
        ("shards finished", f"{len(shards.names):,} of {run.shards:,}, {run.shard_size:,} images each"),
        ("images in this report", f"{tally.images:,} of {run.images:,}"),
        ("view", f"{view.size} x {view.size} pixels, {view.fit}"),
        ("patch grid", f"{view.grid} x {view.grid} patches of {view.patch} pixels"),
        ("label embedding", f"{run.embedding_width:,} numbers"),
        *((what, f"{number:,}") for what, number in run.counts.items()),
    ]
    tables = {
        "Run": run_rows,
        "Models": [(what, model.name) for what, model in models(run)],
        "Settings": [(name, str(value)) for name, value in flat(run.settings).items()],
        "Fingerprints": [*sorted(run.fingerprints.items()), *(("accepted code", c) for c in run.accepted_code)],
        "Environment": sorted(run.environment.items()),
    }
    return {title: rows for title, rows in tables.items() if rows}
