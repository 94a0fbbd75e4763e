"""How many images a second `pad retarget` and `pad filter` write: `python -m benchmarks.retarget`.

Of drawn scenes with their exact regions; with `--shards`, of a run of your own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import NAME
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.selection import Selection
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.build import import_coco
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.rewrite import rewrite


def main() -> None:
    """Draw, import, rewrite in several ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--shards", type=Path, help="instead of drawn scenes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        shards = asked.shards or Path(home, "shards")
        if not asked.shards:
            models = load_models(NAME)
            world = write_world(Path(home, "world"), asked.images)
            source = CocoSource(world.instances, world.images, world.llava)
            import_coco(source, shards, models.llm, models.decode, models.view, RunOptions())
        folder = open_shards(shards)
        view = folder.run.view
        other = View(size=view.size, patch=view.patch, fit="crop" if view.fit == "pad" else "pad")
        ways = {
            "another view": (Selection(), other, None),
            "score threshold 0.35": (Selection(), None, EditSettings(min_score=0.35)),
            "pad filter, all": (Selection(min_edge=1), None, None),
        }
        totals = [row for _, row in folder.rows()]
        regions = sum(row["regions"] for row in totals) / len(totals)
        print(f"{len(totals)} images with {regions:.1f} regions each, local engine, {os.cpu_count()} CPU cores.\n")
        print("| what | seconds | images/s |\n| --- | --- | --- |")
        for number, (name, (chosen, new_view, edits)) in enumerate(ways.items()):
            began = time.monotonic()
            found = rewrite(
                StoredSource([str(shards)], chosen), Path(home, str(number)), RunOptions(), new_view, None, edits
            )
            seconds = time.monotonic() - began
            print(f"| {name} | {seconds:.1f} | {found['images'] / seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
