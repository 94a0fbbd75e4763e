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
from itertools import groupby, islice
from pathlib import Path

import jinja2

from pad_pipeline import __version__
from pad_pipeline.facts import flatten
from pad_pipeline.report.cards import Card, as_script, make_card
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.tally import Tally
from pad_pipeline.shards.provenance import models
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.storage import Folder, atomic_write, claim_folder, write_error
from pad_pipeline.threads import map_ahead

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


def write_report(shards: ShardFolder, out: Path, settings: ReportSettings) -> Iterator[Counter[str]]:
    """Write the report of a run into the folder `out`, `index.html` last. Memory does not grow with the images.

    Yield the numbers of `images`, `failed` images and `regions` after each shard.

    Raises:
        UserError: a shard is damaged, or the folder holds other files than a report.
        OSError: a file can't be written.
    """
    _prepare(out)
    tally = Tally(shards)
    writer = _Writer(out, settings, tally)
    rows = islice(shards.rows(), settings.limit)
    made = map_ahead(lambda row: make_card(shards, *row, settings.edge), rows, _THREADS, 2 * _THREADS)
    for _, cards in groupby(made, lambda card: card.data["shard"]):
        counts: Counter[str] = Counter()
        for card in cards:
            writer.add(card)
            counts.update(images=1, failed=card.data["status"] == "failed", regions=len(card.measures))
        yield counts
    writer.close()
    sizes = {"images": tally.images, "page_size": settings.page_size, "block": BLOCK}
    facts = sizes | {"patches": shards.run.view.grid, "labels": list(tally.labels.items())}
    _write_script(out / "data", "facts", as_script(facts))
    for name in ("report.css", "overlay.js", "report.js"):
        shutil.copyfile(_WEB / name, out / "assets" / name)
    _write_page(out, tally)


class _Writer:
    """Writes the cards to pages and index. A page, or a block of the index, is written when it is full."""

    def __init__(self, out: Path, settings: ReportSettings, tally: Tally) -> None:
        self.out, self.settings, self.tally = out, settings, tally
        self.page: list[str] = []
        self.statuses = ""
        self.labels: list[list[int]] = []
        self.texts: list[str] = []

    def add(self, card: Card) -> None:
        """Write the small copy of a card, and add the card to the page, the index and the statistics."""
        number, position = divmod(self.tally.images, self.settings.page_size)
        if card.image:
            folder = self.out / "images" / f"{number:06d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{position:03d}.jpg").write_bytes(card.image)
        self.page.append(card.text)
        self.tally.add(card)
        self._index(card)
        self.close(self.settings.page_size, BLOCK)

    def close(self, page_size: int = 1, block: int = 1) -> None:
        """Write the page and the block of the index if they have at least this many images."""
        if len(self.page) >= page_size:
            number = (self.tally.images - 1) // self.settings.page_size
            _write_script(self.out / "data", f"page-{number:06d}", f"[{','.join(self.page)}]")
            self.page = []
        if len(self.statuses) >= block:
            number = (self.tally.images - 1) // BLOCK
            index = {"statuses": self.statuses, "labels": self.labels}
            _write_script(self.out / "data", f"index-{number:06d}", as_script(index))
            _write_script(self.out / "data", f"text-{number:06d}", as_script(self.texts))
            self.statuses, self.labels, self.texts = "", [], []

    def _index(self, card: Card) -> None:
        """Add an image to the index: its status, the best score of each label in percent, the texts for the search."""
        best: dict[int, int] = {}
        for measure in card.measures:
            label = self.tally.numbers[measure.label]
            best[label] = max(best.get(label, 0), int(100 * measure.score + 1e-6))
        self.statuses += card.data["status"][0]
        self.labels.append([number for entry in best.items() for number in entry])
        words = ("id", "source", "stage", "reason", "caption")
        self.texts.append("\n".join(filter(None, (card.data.get(name) for name in words))))


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
