"""Writes a report that a browser can open from disk: pages, index and statistics.

A page that is opened from disk can load scripts, but no other files. Therefore, the data is in scripts that call
`padData(name, value)`. `data/page-000000.js` has the images of one page, `data/index-000000.js` the statuses of 4096
images and the numbers of their regions, and `data/text-000000.js` their texts for the search. The browser loads a
script when it needs it. `failed-keys.txt` and `failed.jsonl` list the images that failed.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.facts import flatten
from pad_pipeline.quality.extrapolate import extrapolate
from pad_pipeline.report.cards import as_script, make_card
from pad_pipeline.report.compare import Comparison, SecondRun
from pad_pipeline.report.index import STEPS, regions_of
from pad_pipeline.report.pages import FAILED, FAILED_KEYS, PageWriter, Part, write_copy, write_script
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.tally import Tally
from pad_pipeline.shards.provenance import models
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.storage import Folder, atomic_write, claim_folder, write_error
from pad_pipeline.threads import OverShards, map_ahead

MARK = ".pad-report"
"""A file that marks the folder of a report, which a new report may overwrite."""
_THREADS = min(8, os.cpu_count() or 1)
_WEB = Path(__file__).parent / "web"
SCRIPTS = (
    "dom", "colors", "data", "state", "thresholds", "overlay", "names", "search", "flags", "gallery", "zoom", "detail",
    "verdicts", "review", "report",
)  # fmt: skip
"""The page's scripts, in the order in which they run."""


def _prepare(out: Path) -> None:
    """Create the folder of a report, and remove the files of an earlier report."""
    claim_folder(out, MARK, "`pad report` may replace what is in this folder.\n")
    try:
        Folder(out).clean()
        for name in ("index.html", FAILED_KEYS, FAILED):  # the page first, so that an unfinished report does not open
            (out / name).unlink(missing_ok=True)
        for part in (out / name for name in ("data", "images", "assets", "words")):
            if part.is_symlink() or part.is_file():
                part.unlink()
            elif part.exists():
                shutil.rmtree(part)
            part.mkdir()
    except OSError as error:
        raise write_error(out, error) from error


def write_report(
    shards: ShardFolder,
    out: Path,
    settings: ReportSettings,
    over: OverShards | None = None,
    second: ShardFolder | None = None,
    words: Path | None = None,
) -> Iterator[Counter[str]]:
    """Write the report of a run into the folder `out`, `index.html` last. Memory does not grow with the images. Cards
    are made through `over`, or in this process and threads of it if that is None. With `second`, each image is compared
    with the one of a second run. With `words`, a folder of `pad analyze`, its drawings are shown with their images.

    Yield the numbers of `images`, `failed` images and `regions` after each shard.

    Raises:
        UserError: a shard is damaged, the folder holds other files than a report, or `words` has no drawing.
        OSError: a file can't be written.
    """
    drawings = _drawings(words, out) if words else []
    _prepare(out)
    writer = PageWriter(out, settings, tally := Tally(shards))
    into = out if over is None or over.shares_disk else None
    other = SecondRun(second) if second else None
    make = partial(_make_part, shards, other, settings, into, 1 if over else _THREADS)
    for part in over(make, _spans(shards, settings)) if over else map(make, _spans(shards, settings)):
        writer.add(part)
        found = part.tally
        yield Counter(images=found.images, failed=found.statuses["failed"], regions=found.regions)
    writer.write_full(1, 1)
    drawn = _copy_words(drawings, out)
    write_script(out / "data", "facts", as_script(_page_facts(tally, settings, writer, second) | {"words": drawn}))
    for name in ("report.css", *(f"{name}.js" for name in SCRIPTS)):
        shutil.copyfile(_WEB / name, out / "assets" / name)
    _write_page(out, tally, second)


def _drawings(words: Path, out: Path) -> list[Path]:
    """Return the drawings in a folder of `pad analyze`."""
    remedy = "give the folder that `pad analyze` wrote with `out` and `drawings`"
    if out.resolve() in (words.resolve(), *words.resolve().parents):
        raise UserError("words", words, "it is in the folder of the report, which is made again", remedy)
    found = sorted(words.glob("words-*.png"))
    if not found:
        raise UserError("words", words, "there is no drawing in it (words-KEY.png)", remedy)
    return found


def _copy_words(drawings: list[Path], out: Path) -> dict[str, str]:
    """Copy drawings as words into the report. Return the path of each in it, by the image's key."""
    drawn = {path.stem.removeprefix("words-"): f"words/{number:06d}.png" for number, path in enumerate(drawings)}
    for path, place in zip(drawings, drawn.values(), strict=True):
        shutil.copyfile(path, out / place)
    return drawn


def _page_facts(
    tally: Tally, settings: ReportSettings, writer: PageWriter, second: ShardFolder | None
) -> dict[str, Any]:
    """Return the facts that the page needs before it shows anything."""
    run, where = tally.shards.run, str(tally.shards.folder).rstrip("/")
    return {
        "images": tally.images,
        "ok": tally.statuses["ok"],
        "regions": tally.regions,
        "page_size": settings.page_size,
        "block": writer.block,
        "patches": run.view.grid,
        "labels": [(label, tally.labels[label]) for label in tally.numbers],
        "identity": run.identity,
        # For flags and verdicts in the browser: runs with the same settings on other images have the same identity.
        "store": f"{run.identity}-{run.fingerprints.get('inputs', '')[:16]}",
        "steps": STEPS,
        "histograms": {name: counts.tolist() for name, counts in writer.histograms.counts.items()},
        # Quoted for a shell: the run, and a name for the run that keeps fewer regions.
        "run": shlex.quote(where),
        "sure": shlex.quote(f"{where}-sure"),
        "names": _names(tally.shards, second),
        "second": {**writer.found, "patches": second.run.view.grid} if second else None,
    }


def _command(shards: ShardFolder) -> str:
    """Return the command that made a run."""
    return f"pad {shards.run.kind.replace('-', ' ')}"


def _names(shards: ShardFolder, second: ShardFolder | None) -> list[str]:
    """Return a short name for each run: the last part of its folder or URL, or all of it if both would be the same."""
    where = [str(run.folder) for run in (shards, second) if run]
    short = [name.rstrip("/").rpartition("/")[2] or name for name in where]
    return where if len(set(short)) < len(short) else short


_Span = tuple[str, int, int]
"""A shard, the number of its first image in the report, and the number of its images in the report."""


def _spans(shards: ShardFolder, settings: ReportSettings) -> Iterator[_Span]:
    first, limit = 0, settings.limit or shards.run.images
    for name in shards.names:
        if images := min(shards.planned(name), limit - first):
            yield name, first, images
            first += images


def _make_part(
    shards: ShardFolder, second: SecondRun | None, settings: ReportSettings, out: Path | None, threads: int, span: _Span
) -> Part:
    """Make the cards of a shard's images. The small copies are written into `out`, or returned if it is None."""
    name, first, images = span
    rows = shards.index(name)
    if len(rows) != shards.planned(name):
        rule = f"it lists {len(rows)} images, but {shards.planned(name)} are planned"
        raise UserError("shards", f"{shards.folder}/{name}.parquet", rule, f"see `pad verify {shards.folder}`")
    places = second.find(name, rows[:images]) if second else [None] * len(rows)

    def compared(place: int) -> Comparison:
        card = make_card(shards, name, rows[place], settings.edge)
        return second.compare(card, places[place]) if second else Comparison(card, [False] * len(card.measures), [])

    part = Part(Tally(shards), {}, [], "", [], [], [], [], Counter())
    statuses = ""
    found = map_ahead(compared, range(len(rows[:images])), threads, 2 * threads)
    for number, (card, only, extra) in enumerate(found, first):
        if card.image:
            page, position = divmod(number, settings.page_size)
            path = f"images/{page:06d}/{position:03d}.jpg"
            if out:
                write_copy(out / path, card.image)
            else:
                part.copies[path] = card.image
        part.tally.add(card)
        part.cards.append(card.text)
        statuses += card.data["status"][0]
        part.regions.append(regions_of(card.measures, only))
        if second:
            part.second.append(regions_of(extra, [True] * len(extra)))
            both = "regions" in card.data["second"]
            part.found.update(compared=both, first=sum(only), second=len(extra), images=any(only) or bool(extra))
        texts = [card.data.get(name) for name in ("key", "id", "source", "stage", "reason", "caption")]
        texts += [label for label, _ in card.data.get("tags", [])]
        part.texts.append("\n".join(filter(None, texts)))
        if card.data["status"] == "failed":
            part.failed.append({name: card.data[name] for name in ("key", "id", "source", "stage", "reason")})
    return part._replace(statuses=statuses)


def _write_page(out: Path, tally: Tally, second: ShardFolder | None) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("index.html.jinja").render(
        names=_names(tally.shards, second),
        facts=_run_facts(tally, second),
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


def _extrapolated(shards: ShardFolder) -> list[tuple[str, str]]:
    """Return what all images of a run would give, if a part of it is a sample."""
    if not shards.run.sample or len(shards.names) == shards.run.shards:
        return []
    try:
        images, found = extrapolate(shards)
    except UserError:  # no shard of the sample is finished, but others are
        return []
    rows = [(one.what, " ".join(filter(None, (one.texts[0], one.texts[1] and f"({one.texts[1]})")))) for one in found]
    return [("sampled images", f"{images:,}"), *rows]


def _run_facts(tally: Tally, second: ShardFolder | None) -> dict[str, list[tuple[str, str]]]:
    """Return tables of facts about a run: title -> rows of name and value. Empty tables are left out."""
    shards, run, view = tally.shards, tally.shards.run, tally.shards.run.view
    run_rows = [
        ("where", str(shards.folder)),
        ("made by", _command(shards)),
        ("shards finished", f"{len(shards.names):,} of {run.shards:,}, {run.shard_size:,} images each"),
        ("images in this report", f"{tally.images:,} of {run.images:,}"),
        ("view", f"{view.size} x {view.size} pixels, {view.fit}"),
        ("patch grid", view.grid_text),
        ("label embedding", f"{run.embedding_width:,} numbers"),
        *((what, f"{number:,}") for what, number in run.counts.items()),
    ]
    tables = {
        "Run": run_rows,
        "All images, extrapolated from the random sample in it": _extrapolated(shards),
        "Second run": [("where", str(second.folder)), ("made by", _command(second))] if second else [],
        "Models": [(what, model.name) for what, model in models(run)],
        "Settings": [(name, str(value)) for name, value in flatten(run.settings).items()],
        "Fingerprints": [*sorted(run.fingerprints.items()), *(("accepted code", c) for c in run.accepted_code)],
        "Environment": sorted(run.environment.items()),
    }
    return {title: rows for title, rows in tables.items() if rows}
