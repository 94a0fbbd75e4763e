"""`pad report`: write a run as HTML pages."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.errors import UserError
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.workflows.commands.common import READ_OPTIONS, counted, reading, seen_by_workers
from pad_pipeline.workflows.commands.options import OptionValues, options

REPORT_OPTIONS = options(ReportSettings, None, "limit page_size edge")


def report(
    *,
    shards: Annotated[list[str], typer.Argument(help="Folder or URL of a run; two of them to compare two runs.")],
    out: Annotated[str, typer.Option(help="Folder on this machine: new, empty, or with an earlier report to replace.")],
    words: Annotated[
        Path | None, typer.Option(help="Folder of `pad analyze --out`: its drawings as words are shown in the report.")
    ] = None,
    settings: Annotated[OptionValues, REPORT_OPTIONS],
    read: Annotated[OptionValues, READ_OPTIONS],
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write a run as HTML pages: a gallery with sliders for thresholds, a review of random regions, statistics.

    Open OUT/index.html in a browser; this needs neither a network nor a server. The gallery shows each image with its
    tags, boxes, masks, and its patch grid with coverage. Sliders hide regions, count those that stay, and print the
    `pad retarget` command that keeps them. The review saves verdicts on a random sample as a file. Flagged and failed
    images are saved as keys for `pad filter`. The gallery loads page by page, so 100,000 images open as fast as ten.

    With two runs, the images of the first stand beside the same images of the second, and the regions that only one of
    them has can be counted and shown alone.

    Examples:

      pad report shards/ --out report/ --open

      pad report s3://bucket/shards --out report/ --limit 1000

      pad report old/ new/ --out compared/
    """
    from pad_pipeline.report.site import write_report
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.storage import is_url

    if not out or is_url(out):
        raise UserError("out", out, "a report opens from disk", "name a folder on this machine")
    if len(shards) > 2:
        raise UserError("shards", ", ".join(shards), "a report compares two runs", "name one or two")
    opened, second = [*(open_shards(seen_by_workers(folder, read)) for folder in shards), None][:2]
    assert opened is not None
    images = min(opened.run.images, len(opened.names) * opened.run.shard_size, settings.get("limit") or sys.maxsize)
    over = reading(shards[0], read, -(-images // max(opened.run.shard_size, 1)))
    parts = write_report(opened, Path(out), ReportSettings(**settings), over, second, words)
    images = _follow(parts, -(-images // opened.run.shard_size), images)
    page = Path(out, "index.html").resolve()
    say(f"{counted(images, 'image')}: {page.as_uri()}")
    if open_it:
        typer.launch(str(page))


def _follow(parts: Iterator[Counter[str]], shards: int, images: int) -> int:
    """Show the progress of a report of about so many shards and images, and return its number of images."""
    from pad_pipeline.workflows.engine.chain import Done, StageWork
    from pad_pipeline.workflows.engine.progress import Progress, StageState

    progress = Progress("report", shards, images, errors)
    began = time.monotonic()

    def written() -> Iterator[Done]:
        for number, counts in enumerate(parts):
            yield Done(number, dict(counts))
            work = StageWork(progress.found["images"], progress.found["failed"], time.monotonic() - began)
            progress.update({"report": StageState(work, workers=1)})

    progress.update({"report": StageState(workers=1)})
    progress.follow(written())
    return progress.found["images"]
