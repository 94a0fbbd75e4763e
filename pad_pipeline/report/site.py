"""Writes a report that a browser can open from disk: pages, index and statistics.

A page that is opened from disk can load scripts, but no other files. Therefore, the data is in scripts that call
`padData(name, value)`. `data/page-000000.js` has the images of one page, `data/index-000000.js` the status and labels
of 4096 images, and `data/text-000000.js` their texts for the search. The browser loads a script when it needs it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jinja2

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.facts import flatten
from pad_pipeline.report.cards import as_script, make_card
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.tally import Tally
from pad_pipeline.shards.provenance import models
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.storage import Folder, atomic_write, claim_folder, write_error
from pad_pipeline.threads import OverShards, map_ahead

MARK = ".pad-report"
"""A file that marks the folder of a report, which a new report may overwrite."""
BLOCK = 4096
"""The number of images in one file of the index."""
_THREADS = min(8, os.cpu_count() or 1)
_WEB = Path(__file__).parent / "web"


def _prepare(out: Path) -> None:
    """Create the folder of a report, and remove the files of an earlier report."""
    claim_folder(out, MARK, "`pad report` may replace what is in this folder.\n")
    try:
        Folder(out).clean()
        (out / "index.html").unlink(missing_ok=True)  # removed first, so that an unfinished report does not open
        for part in (out / name for name in ("data", "images", "assets")):
            if part.is_symlink() or part.is_file():
                part.unlink()
            elif part.exists():
                shutil.rmtree(part)
            part.mkdir()
    except OSError as error:
        raise write_error(out, error) from error


class _Part(NamedTuple):
    """The part of a report that one shard gives."""

    tally: Tally
    copies: dict[str, bytes]
    """The small copies of images that are not written yet, by path."""
    cards: list[str]
    """The cards of the images, as JSON."""
    statuses: str
    """The first letter of each image's status."""
    best: list[dict[str, int]]
    """Label -> its best score in percent, for each image."""
    texts: list[str]
    """The texts of each image for the search."""


def write_report(
    shards: ShardFolder, out: Path, settings: ReportSettings, over: OverShards | None = None
) -> Iterator[Counter[str]]:
    """Write the report of a run into the folder `out`, `index.html` last. Memory does not grow with the images. Cards
    are made through `over`, or in this process and threads of it if that is None.

    Yield the numbers of `images`, `failed` images and `regions` after each shard.

    Raises:
        UserError: a shard is damaged, or the folder holds other files than a report.
        OSError: a file can't be written.
    """
    _prepare(out)
    writer = _Writer(out, settings, tally := Tally(shards))
    into = out if over is None or over.shares_disk else None
    make = partial(_make_part, shards, settings, into, 1 if over else _THREADS)
    for part in over(make, _spans(shards, settings)) if over else map(make, _spans(shards, settings)):
        writer.add(part)
        found = part.tally
        yield Counter(images=found.images, failed=found.statuses["failed"], regions=found.regions)
    writer.write_full(1, 1)
    sizes = {"images": tally.images, "page_size": settings.page_size, "block": BLOCK}
    facts = sizes | {"patches": shards.run.view.grid, "labels": list(tally.labels.items())}
    _write_script(out / "data", "facts", as_script(facts))
    for name in ("report.css", "overlay.js", "report.js"):
        shutil.copyfile(_WEB / name, out / "assets" / name)
    _write_page(out, tally)


_Span = tuple[str, int, int]
"""A shard, the number of its first image in the report, and the number of its images in the report."""


def _spans(shards: ShardFolder, settings: ReportSettings) -> Iterator[_Span]:
    first, limit = 0, settings.limit or shards.run.images
    for name in shards.names:
        if images := min(shards.planned(name), limit - first):
            yield name, first, images
            first += images


def _make_part(shards: ShardFolder, settings: ReportSettings, out: Path | None, threads: int, span: _Span) -> _Part:
    """Make the cards of a shard's images. The small copies are written into `out`, or returned if it is None."""
    name, first, images = span
    rows = shards.index(name)
    if len(rows) != shards.planned(name):
        rule = f"it lists {len(rows)} images, but {shards.planned(name)} are planned"
        raise UserError("shards", f"{shards.folder}/{name}.parquet", rule, f"see `pad verify {shards.folder}`")
    part = _Part(Tally(shards), {}, [], "", [], [])
    statuses = ""
    cards = map_ahead(lambda row: make_card(shards, name, row, settings.edge), rows[:images], threads, 2 * threads)
    for number, card in enumerate(cards, first):
        if card.image:
            page, position = divmod(number, settings.page_size)
            path = f"images/{page:06d}/{position:03d}.jpg"
            if out:
                _write_copy(out / path, card.image)
            else:
                part.copies[path] = card.image
        part.tally.add(card)
        part.cards.append(card.text)
        statuses += card.data["status"][0]
        best: dict[str, int] = {}
        for measure in card.measures:
            best[measure.label] = max(best.get(measure.label, 0), int(100 * measure.score + 1e-6))
        part.best.append(best)
        words = ("id", "source", "stage", "reason", "caption")
        part.texts.append("\n".join(filter(None, (card.data.get(name) for name in words))))
    return part._replace(statuses=statuses)


def _write_copy(path: Path, image: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image)


class _Writer:
    """Writes the cards to pages and index. A page, or a block of the index, is written when it is full."""

    def __init__(self, out: Path, settings: ReportSettings, tally: Tally) -> None:
        self.out, self.settings, self.tally = out, settings, tally
        self.pages = self.blocks = 0
        """Numbers of written pages and blocks."""
        self.cards: list[str] = []
        self.statuses = ""
        self.labels: list[list[int]] = []
        """The number of each label of an image, and its best score in percent, one after the other."""
        self.texts: list[str] = []

    def add(self, part: _Part) -> None:
        """Add a shard to the pages, the index and the statistics."""
        for path, image in part.copies.items():
            _write_copy(self.out / path, image)
        self.tally.merge(part.tally)
        numbers = self.tally.numbers
        self.cards += part.cards
        self.statuses += part.statuses
        self.labels += [
            [part for label, score in best.items() for part in (numbers[label], score)] for best in part.best
        ]
        self.texts += part.texts
        self.write_full(self.settings.page_size, BLOCK)

    def write_full(self, page_size: int, block: int) -> None:
        """Write pages and blocks of the index while at least this many images are left for one."""
        while len(self.cards) >= page_size:
            cards, self.cards = self.cards[: self.settings.page_size], self.cards[self.settings.page_size :]
            _write_script(self.out / "data", f"page-{self.pages:06d}", f"[{','.join(cards)}]")
            self.pages += 1
        while len(self.statuses) >= block:
            index = {"statuses": self.statuses[:BLOCK], "labels": self.labels[:BLOCK]}
            _write_script(self.out / "data", f"index-{self.blocks:06d}", as_script(index))
            _write_script(self.out / "data", f"text-{self.blocks:06d}", as_script(self.texts[:BLOCK]))
            self.statuses, self.labels, self.texts = self.statuses[BLOCK:], self.labels[BLOCK:], self.texts[BLOCK:]
            self.blocks += 1


def _write_script(folder: Path, name: str, value: str) -> None:
    (folder / f"{name}.js").write_text(f'padData("{name}",{value});\n', "ascii")


def _write_page(out: Path, tally: Tally) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("index.html.jinja").render(
        name=str(tally.shards.folder).rstrip("/").rpartition("/")[2] or str(tally.shards.folder),
        facts=_run_facts(tally),
        tally=tally,
        by_count=[label for label, _ in tally.labels.most_common()],
        by_area=sorted(tally.areas, key=lambda label: -tally.areas[label]),
        failures=sorted(tally.failures.items(), key=lambda entry: -entry[1].count),
        written=f"{datetime.now(UTC):%Y-%m-%d} by pad {__version__}",
    )
    with atomic_write(out / "index.html", durable=False) as partial:
        partial.write_bytes(page.encode("utf-8", "replace"))  # `replace`: a text can have a lone surrogate


def _run_facts(tally: Tally) -> dict[str, list[tuple[str, str]]]:
    """Return tables of facts about a run: title -> rows of name and value. Empty tables are left out."""
    shards, run, view = tally.shards, tally.shards.run, tally.shards.run.view
    run_rows = [
        ("where", str(shards.folder)),
        ("made by", f"pad {run.kind.replace('-', ' ')}"),
        ("shards finished", f"{len(shards.names):,} of {run.shards:,}, {run.shard_size:,} images each"),
        ("images in this report", f"{tally.images:,} of {run.images:,}"),
        ("view", f"{view.size} x {view.size} pixels, {view.fit}"),
        ("patch grid", view.grid_text),
        ("label embedding", f"{run.embedding_width:,} numbers"),
        *((what, f"{number:,}") for what, number in run.counts.items()),
    ]
    tables = {
        "Run": run_rows,
        "Models": [(what, model.name) for what, model in models(run)],
        "Settings": [(name, str(value)) for name, value in flatten(run.settings).items()],
        "Fingerprints": [*sorted(run.fingerprints.items()), *(("accepted code", c) for c in run.accepted_code)],
        "Environment": sorted(run.environment.items()),
    }
    return {title: rows for title, rows in tables.items() if rows}
