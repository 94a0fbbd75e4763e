"""Writes a report that a browser can open from disk: pages, index and statistics.

A page that is opened from disk can load scripts, but no other files. Therefore, the data is in scripts that call
`padData(name, value)`. `data/page-000000.js` has the images of one page, `data/index-000000.js` the statuses of 4096
images and the numbers of their regions, and `data/text-000000.js` their texts for the search. The browser loads a
script when it needs it. `failed-keys.txt` and `failed.jsonl` list the images that failed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.facts import flatten
from pad_pipeline.report.cards import as_script, make_card
from pad_pipeline.report.index import STEPS, Histograms, block_of, levels
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
SCRIPTS = (
    "dom", "colors", "data", "state", "thresholds", "overlay", "names", "search", "flags", "gallery", "zoom", "detail",
    "verdicts", "review", "report",
)  # fmt: skip
"""The page's scripts, in the order in which they run."""
FAILED_KEYS, FAILED = "failed-keys.txt", "failed.jsonl"
"""The keys of failed images, for `pad filter`; the same images with stage and reason."""


def _prepare(out: Path) -> None:
    """Create the folder of a report, and remove the files of an earlier report."""
    claim_folder(out, MARK, "`pad report` may replace what is in this folder.\n")
    try:
        Folder(out).clean()
        for name in ("index.html", FAILED_KEYS, FAILED):  # the page first, so that an unfinished report does not open
            (out / name).unlink(missing_ok=True)
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
    labels: list[list[str]]
    """The labels of each image's regions."""
    levels: list[np.ndarray]
    """The numbers of each image's regions, see `levels`."""
    texts: list[str]
    """The texts of each image for the search: the key, then the others, one a line."""
    failed: list[dict[str, str]]
    """The failed images, each with key, id, source, stage and reason."""


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
    _write_script(out / "data", "facts", as_script(_page_facts(tally, settings, writer.histograms)))
    for name in ("report.css", *(f"{name}.js" for name in SCRIPTS)):
        shutil.copyfile(_WEB / name, out / "assets" / name)
    _write_page(out, tally)


def _page_facts(tally: Tally, settings: ReportSettings, histograms: Histograms) -> dict[str, Any]:
    """Return the facts that the page needs before it shows anything."""
    run, where = tally.shards.run, str(tally.shards.folder).rstrip("/")
    return {
        "images": tally.images,
        "ok": tally.statuses["ok"],
        "regions": tally.regions,
        "page_size": settings.page_size,
        "block": BLOCK,
        "patches": run.view.grid,
        "labels": list(tally.labels.items()),
        "identity": run.identity,
        "steps": STEPS,
        "histograms": {name: counts.tolist() for name, counts in histograms.counts.items()},
        # Quoted for a shell: the run, and a name for the run that keeps fewer regions.
        "run": shlex.quote(where),
        "sure": shlex.quote(f"{where}-sure"),
    }


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
    part = _Part(Tally(shards), {}, [], "", [], [], [], [])
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
        part.labels.append([measure.label for measure in card.measures])
        part.levels.append(levels(card.measures))
        texts = [card.data.get(name) for name in ("key", "id", "source", "stage", "reason", "caption")]
        texts += [label for label, _ in card.data.get("tags", [])]
        part.texts.append("\n".join(filter(None, texts)))
        if card.data["status"] == "failed":
            part.failed.append({name: card.data[name] for name in ("key", "id", "source", "stage", "reason")})
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
        """The numbers of the labels of each image's regions."""
        self.levels: list[np.ndarray] = []
        self.texts: list[str] = []
        self.histograms = Histograms()

    def add(self, part: _Part) -> None:
        """Add a shard to the pages, the index and the statistics."""
        for path, image in part.copies.items():
            _write_copy(self.out / path, image)
        self.tally.merge(part.tally)
        numbers = self.tally.numbers
        self.cards += part.cards
        self.statuses += part.statuses
        self.labels += [[numbers[label] for label in of_image] for of_image in part.labels]
        self.levels += part.levels
        if part.levels:
            self.histograms.add(np.vstack(part.levels))
        self.texts += part.texts
        if part.failed:
            with (self.out / FAILED_KEYS).open("a", encoding="utf-8") as keys, (self.out / FAILED).open("a") as lines:
                for failed in part.failed:
                    keys.write(f"{failed['key']}\n")
                    lines.write(f"{json.dumps(failed)}\n")
        self.write_full(self.settings.page_size, BLOCK)

    def write_full(self, page_size: int, block: int) -> None:
        """Write pages and blocks of the index while at least this many images are left for one."""
        while len(self.cards) >= page_size:
            cards, self.cards = self.cards[: self.settings.page_size], self.cards[self.settings.page_size :]
            _write_script(self.out / "data", f"page-{self.pages:06d}", f"[{','.join(cards)}]")
            self.pages += 1
        while len(self.statuses) >= block:
            of_block = self.labels[:BLOCK]
            labels = np.array([label for of_image in of_block for label in of_image], np.int64)
            index = block_of(self.statuses[:BLOCK], [*map(len, of_block)], labels, np.vstack(self.levels[:BLOCK]))
            _write_script(self.out / "data", f"index-{self.blocks:06d}", as_script(index))
            _write_script(self.out / "data", f"text-{self.blocks:06d}", as_script(self.texts[:BLOCK]))
            self.statuses, self.texts = self.statuses[BLOCK:], self.texts[BLOCK:]
            self.labels, self.levels = self.labels[BLOCK:], self.levels[BLOCK:]
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
        scripts=SCRIPTS,
        failed_files=(FAILED_KEYS, FAILED),
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
