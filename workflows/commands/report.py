"""`pad report`: a run as a report that opens in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import say, track
from pad_pipeline.errors import UserError
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.workflows.commands.common import Shards, counted
from pad_pipeline.workflows.commands.options import Given, options

REPORT_OPTIONS = options(ReportSettings, None, "limit page_size edge")


def report(
    *,
    shards: Shards,
    out: Annotated[str, typer.Option(help="Folder on this machine: new, empty, or an earlier report to replace.")],
    settings: Annotated[Given, REPORT_OPTIONS],
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write a report of a run: a gallery to filter and search, statistics, and the run's facts.

    It needs no network and no server: open OUT/index.html from disk, in any browser, or copy the folder to somebody.
    The gallery shows each image with its tags, boxes, masks and its patch grid with coverage; scores where the mouse
    points; images that failed, with stage and reason. It goes page by page, so 100,000 images open as fast as ten.

    Examples:

      pad report shards/ --out report/ --open

      pad report s3://bucket/shards --out report/ --limit 1000
    """
    from pad_pipeline.report.site import write_report
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.storage import is_url

    if not out or is_url(out):
        raise UserError("out", out, "a report opens from disk", "name a folder on this machine")
    run, chosen = open_shards(shards), ReportSettings(**settings)
    shown = min(len(run.names), -(-(chosen.limit or run.run.images) // run.run.shard_size))
    steps = track(write_report(run, Path(out), chosen), "writing", shown)
    images = sum(found["images"] for found in steps)
    page = Path(out, "index.html").resolve()
    say(f"{counted(images, 'image')}: {page.as_uri()}")
    if open_it:
        typer.launch(str(page))
