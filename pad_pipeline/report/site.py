"""A report that opens from disk in any browser: pages, index, statistics, written as a stream.

A page that is opened from disk may not fetch files, but it may load scripts. So data lies in scripts that call
`padData(name, value)`: `data/page-000000.js` holds the images of one page, `data/index-000000.js` status and labels of
4096 images, and `data/text-000000.js` what is searched of them. The browser loads each when it needs it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path

import jinja2

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.report.cards import Card, as_script, make_card
from pad_pipeline.report.facts import run_facts
from pad_pipeline.report.tally import Tally
from pad_pipeline.shards.reader import ShardFolder

MARK = ".pad-report"
"""A file that only a report has: the folder may be written over."""
_WEB = Path(__file__).parent / "web"
_PARTS = ("data", "images", "assets")
_ASSETS = ("report.css", "overlay.js", "report.js")


@dataclass(frozen=True)
class ReportSettings:
    """How a report is cut."""

    limit: int | None = None
    """Images, from the first one; None for all."""
    page_size: int = 24
    """Images on one page, and in one data file."""
    edge: int = 512
    """Long edge of the images, in pixels."""
    block: int = 4096
    """Images in one file of the index."""
    threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """For reading, decoding and drawing."""


def prepare_out(out: Path) -> None:
    """Make the folder of a report, with nothing of an earlier one in it.

    Raises:
        UserError: it is in use for something else.
    """
    remedy = "name a folder that is new, empty, or an earlier report"
    if out.exists() and not out.is_dir():
        raise UserError("out", out, "this is a file", remedy)
    if out.exists() and not (out / MARK).is_file() and any(out.iterdir()):
        raise UserError("out", out, f"it holds something else ({min(out.iterdir()).name})", remedy)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text("`pad report` may replace what is in this folder.\n")
        (out / "index.html").unlink(missing_ok=True)  # first of all: a half report should not open
        for part in _PARTS:
            if (out / part).is_symlink() or (out / part).is_file():
                (out / part).unlink()
            elif (out / part).exists():
                shutil.rmtree(out / part)
            (out / part).mkdir()
    except OSError as error:
        raise UserError("out", out, f"it can't be written ({error.strerror or error})", remedy) from error


def write_report(shards: ShardFolder, out: Path, settings: ReportSettings) -> Iterator[Counter[str]]:
    """Write the report of a run, in memory that does not grow with its images. `index.html` comes last.

    Args:
        shards: of the run.
        out: the folder, see `prepare_out`.
        settings: how it is cut.

    Yields:
        After each shard, what of it was written: `images`, `failed`, `regions`.

    Raises:
        UserError: a shard is damaged, or the folder is in use.
        OSError: it can't be written.
    """
    prepare_out(out)
    writer = _Writer(out, settings)
    for _, cards in groupby(_cards(shards, settings), lambda card: card.data["shard"]):
        found: Counter[str] = Counter()
        for card in cards:
            writer.add(card)
            failed = card.data["status"] == "failed"
            found.update(images=1, failed=failed, regions=len(card.measures))
        yield found
    writer.close()
    tally = writer.tally
    facts = {
        "images": tally.images,
        "page_size": settings.page_size,
        "block": settings.block,
        "patches": shards.run.view.grid,
        "labels": [[label, found.count] for label, found in tally.labels.items()],
    }
    _write_script(out / "data", "facts", as_script(facts))
    for name in _ASSETS:
        shutil.copyfile(_WEB / name, out / "assets" / name)
    _write_page(shards, out, tally)


def _cards(shards: ShardFolder, settings: ReportSettings) -> Iterator[Card]:
    """In order, a few ahead, made in threads."""
    with ThreadPoolExecutor(settings.threads) as threads:
        waiting: deque[Future[Card]] = deque()
        try:
            for name, row in islice(shards.rows(), settings.limit):
                waiting.append(threads.submit(make_card, shards, name, row, settings.edge))
                if len(waiting) > 2 * settings.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Writer:
    """Takes cards in order, and writes pages and blocks of the index as they fill."""

    def __init__(self, out: Path, settings: ReportSettings) -> None:
        self.out, self.settings, self.tally = out, settings, Tally()
        self.page: list[str] = []
        self.statuses = ""
        self.labels: list[list[int]] = []
        self.texts: list[str] = []

    def add(self, card: Card) -> None:
        """Write one image: its small copy, its card on the page, its lines in the index and in the statistics."""
        number, position = divmod(self.tally.images, self.settings.page_size)
        if card.image:
            folder = self.out / "images" / f"{number:06d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{position:03d}.jpg").write_bytes(card.image)
        self.page.append(card.text)
        self.tally.add(card)
        self._index(card)
        if len(self.page) == self.settings.page_size:
            self._close_page()
        if len(self.statuses) == self.settings.block:
            self._close_block()

    def close(self) -> None:
        """Write what is left."""
        if self.page:
            self._close_page()
        if self.statuses:
            self._close_block()

    def _index(self, card: Card) -> None:
        """The image's status, the best score of each of its labels in percent, and the words to be searched."""
        best: dict[int, int] = {}
        for measure in card.measures:
            label = self.tally.labels[measure.label].number
            best[label] = max(best.get(label, 0), int(100 * measure.score + 1e-6))
        self.statuses += card.data["status"][0]
        self.labels.append([number for entry in best.items() for number in entry])
        words = ("id", "source", "stage", "reason", "caption")
        self.texts.append("\n".join(filter(None, (card.data.get(name) for name in words))))

    def _close_page(self) -> None:
        number = (self.tally.images - 1) // self.settings.page_size
        _write_script(self.out / "data", f"page-{number:06d}", f"[{','.join(self.page)}]")
        self.page = []

    def _close_block(self) -> None:
        number = (self.tally.images - 1) // self.settings.block
        block = {"statuses": self.statuses, "labels": self.labels}
        _write_script(self.out / "data", f"index-{number:06d}", as_script(block))
        _write_script(self.out / "data", f"text-{number:06d}", as_script(self.texts))
        self.statuses, self.labels, self.texts = "", [], []


def _write_script(folder: Path, name: str, value: str) -> None:
    (folder / f"{name}.js").write_text(f'padData("{name}",{value});\n', "ascii")


def _write_page(shards: ShardFolder, out: Path, tally: Tally) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("index.html.jinja").render(
        name=str(shards.folder).rstrip("/").rpartition("/")[2] or str(shards.folder),
        facts=run_facts(shards, tally),
        tally=tally,
        by_count=sorted(tally.labels.items(), key=lambda entry: -entry[1].count),
        by_area=sorted(tally.labels.items(), key=lambda entry: -entry[1].area),
        failures=sorted(tally.failures.items(), key=lambda entry: -entry[1].count),
        written=f"{datetime.now(UTC):%Y-%m-%d} by pad {__version__}",
    )
    partial = out / ".index.html.partial"
    partial.write_bytes(page.encode("utf-8", "replace"))  # a lone surrogate of a caption has no form in UTF-8
    partial.replace(out / "index.html")
