"""The speed of a run is told before it by a dry run, and kept for programs while it goes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pad_pipeline.miniature.files import World
from tests.runs.conftest import Pad


def test_a_dry_run_measures_and_writes_nothing(world: World, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """The cost of 500,000 images should be known before they are begun."""
    out = tmp_path / "out"
    refused = pad("build", "--images", world.images, *common, "--dry-run", "--retry-failed", "--out", out)
    assert refused.code == 2 and "leave one of them out" in refused.err
    done = pad("build", "--images", world.images, *common, "--engine", "local", "--dry-run", "--out", out)
    assert done.code == 0, done.err
    assert "10 in 1 shards" in done.out
    assert "5 images, 0 failed" in done.out
    for stage in ("decode", "tag", "ground", "segment", "patchify"):
        assert re.search(rf"{stage} +│ 0\.\d{{3}} s an image", done.out), stage
    assert not out.exists()


def test_figures_are_kept_for_programs(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """metrics.jsonl: what the live table shows, one entry a minute and one at the end; a rerun adds to it."""
    out = tmp_path / "out"
    said = pad(*imported, "--shard-size", 4, "--out", out).err
    assert re.search(
        r"3 of 3 shards, 10 images, \d+\.\d/s, \d+ regions, 0 failed, 0:00:\d\d elapsed, 0:00:00 left", said
    )
    (entry,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (entry["images"], entry["shards"], entry["failed"], entry["seconds_left"]) == (10, 3, 0, 0)
    assert entry["images_per_second"] > 0
    for stage in ("decode", "annotate", "patchify"):
        assert entry["stages"][stage]["images"] == 10
        assert set(entry["stages"][stage]) == {"images", "images_per_second", "failed", "queue", "workers", "busy"}
    (out / "pad-000001.parquet").unlink()
    assert pad(*imported, "--shard-size", 4, "--out", out).code == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
