"""`pad report`: write a run as HTML pages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.errors import UserError
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.workflows.commands.common import READ_OPTIONS, Shards, counted, reading, seen_by_workers
from pad_pipeline.workflows.commands.options import OptionValues, options

if TYPE_CHECKING:
    from pad_pipeline.shards.reader import ShardFolder
    from pad_pipeline.threads import OverShards

REPORT_OPTIONS = options(ReportSettings, None, "limit page_size edge")


def report(
    *,
    shards: Shards,
    out: Annotated[str, typer.Option(help="Folder on this machine: new, empty, or with an earlier report to replace.")],
    settings: Annotated[OptionValues, REPORT_OPTIONS],
    read: Annotated[OptionValues, READ_OPTIONS],
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write a run as HTML pages: a gallery with sliders for thresholds, a review of random regions, statistics.

    Open OUT/index.html in a browser; this needs neither a network nor a server. The gallery shows each image with its
    tags, boxes, masks, and its patch grid with coverage. Sliders hide regions, count those that stay, and print the
    `pad retarget` command that keeps them. The review saves verdicts on a random sample as a file. Flagged and failed
    images are saved as keys for `pad filter`. The gallery loads page by page, so 100,000 images open as fast as ten.

    Examples:

      pad report shards/ --out report/ --open

      pad report s3://bucket/shards --out report/ --limit 1000
    """
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.storage import is_url

    if not out or is_url(out):
        raise UserError("out", out, "a report opens from disk", "name a folder on this machine")
    opened = open_shards(seen_by_workers(shards, read))
    images = min(opened.run.images, len(opened.names) * opened.run.shard_size, settings.get("limit") or sys.maxsize)
    over = reading(shards, read, -(-images // max(opened.run.shard_size, 1)))
    images = _write(opened, Path(out), ReportSettings(**settings), images, over)
    page = Path(out, "index.html").resolve()
    say(f"{counted(images, 'image')}: {page.as_uri()}")
    if open_it:
        typer.launch(str(page))


def _write(shards: ShardFolder, folder: Path, settings: ReportSettings, images: int, over: OverShards | None) -> int:
    """Write the report of about so many images, show its progress, and return its number of images."""
    from pad_pipeline.report.site import write_report
    from pad_pipeline.workflows.engine.chain import Done, StageWork
    from pad_pipeline.workflows.engine.progress import Progress, StageState

    progress = Progress("report", -(-images // shards.run.shard_size), images, errors)
    began = time.monotonic()

    def written() -> Iterator[Done]:
        for number, counts in enumerate(write_report(shards, folder, settings, over)):
            yield Done(number, dict(counts))
            work = StageWork(progress.found["images"], progress.found["failed"], time.monotonic() - began)
            progress.update({"report": StageState(work, workers=1)})

    progress.update({"report": StageState(workers=1)})
    progress.follow(written())
    return progress.found["images"]
