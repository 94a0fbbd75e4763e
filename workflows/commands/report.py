"""`pad report`: write a run as HTML pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.errors import UserError
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.workflows.commands.common import Shards, counted
from pad_pipeline.workflows.commands.options import OptionValues, options

if TYPE_CHECKING:
    from pad_pipeline.shards.reader import ShardFolder

REPORT_OPTIONS = options(ReportSettings, None, "limit page_size edge")


def report(
    *,
    shards: Shards,
    out: Annotated[str, typer.Option(help="Folder on this machine: new, empty, or with an earlier report to replace.")],
    settings: Annotated[OptionValues, REPORT_OPTIONS],
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write a run as HTML pages: a gallery to filter and search, statistics, and the settings of the run.

    Open OUT/index.html in a browser; this needs neither a network nor a server. The gallery shows each image with its
    tags, boxes, masks, and its patch grid with coverage. A region under the mouse shows its scores; a failed image
    shows its stage and reason. The gallery loads page by page, so 100,000 images open as fast as ten.

    Examples:

      pad report shards/ --out report/ --open

      pad report s3://bucket/shards --out report/ --limit 1000
    """
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.storage import is_url

    if not out or is_url(out):
        raise UserError("out", out, "a report opens from disk", "name a folder on this machine")
    images = _write(open_shards(shards), Path(out), ReportSettings(**settings))
    page = Path(out, "index.html").resolve()
    say(f"{counted(images, 'image')}: {page.as_uri()}")
    if open_it:
        typer.launch(str(page))


def _write(shards: ShardFolder, folder: Path, settings: ReportSettings) -> int:
    """Write the report, show its progress, and return its number of images."""
    from pad_pipeline.report.site import write_report
    from pad_pipeline.workflows.engine.chain import Done, Worked
    from pad_pipeline.workflows.engine.progress import StageState, Watch

    run = shards.run
    images = min(run.images, len(shards.names) * run.shard_size, settings.limit or run.images)
    watch = Watch("report", -(-images // run.shard_size), images, errors)

    def written() -> Iterator[Done]:
        for number, counts in enumerate(write_report(shards, folder, settings)):
            yield Done(number, dict(counts))
            worked = Worked(watch.found["images"], watch.found["failed"], time.monotonic() - watch.began)
            watch.look({"report": StageState(worked, workers=1)})

    watch.look({"report": StageState(workers=1)})
    watch.follow(written())
    return watch.found["images"]
