"""The command `pad build`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.filesize import decimal

from pad_pipeline.console import Table, console, note, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands import runs
from pad_pipeline.workflows.commands.common import INPUT, MODELS, RUN, Models, counted, print_json
from pad_pipeline.workflows.commands.options import OptionValues, option

if TYPE_CHECKING:
    from pad_pipeline.shards.reader import ShardFolder


def build(
    *,
    images: Annotated[
        str,
        option(
            INPUT,
            "A folder; a LLaVA JSON or JSONL; tables (.parquet, .csv, .tsv) of paths, URLs or images; WebDataset tars "
            "('tars/{0..9}.tar', 'tars/*.tar'); or PAD shards. On this machine, or a URL (https://, s3://, hf://).",
        ),
    ],
    image_root: Annotated[
        str | None,
        option(INPUT, "Folder that paths in a JSON or a list are relative to; by default the folder of that file."),
    ] = None,
    columns: Annotated[
        str, option(INPUT, "Columns of a list, if pad can't guess them: image=URL, caption=ALT, id=N.")
    ] = "",
    models: Models = "paper",
    tag_list: Annotated[
        str,
        option(
            MODELS,
            "Text file with other names for the tagger's labels: one per line, in the same order.",
        ),
    ] = "",
    tag_thresholds: Annotated[
        str, option(MODELS, "Text file with a probability threshold per label, one per line.")
    ] = "",
    view: Annotated[OptionValues, runs.VIEW_OPTIONS],
    run: Annotated[OptionValues, runs.BUILD_OPTIONS],
    dry_run: Annotated[
        bool, option(RUN, "Estimate time and storage with 16 images; write nothing.", "--dry-run")
    ] = False,
    card: Annotated[
        str, option(RUN, "With --dry-run: calculate hours for 1, 8 and N of a GPU, such as h100 or 16xh100.")
    ] = "",
) -> None:
    """Annotate images and write patch-aligned shards.

    RAM finds tags for an image, Grounding DINO finds boxes for the tags, and SAM draws a mask for each box. A shard
    holds each mask's coverage on the patch grid, and the mean of the word embeddings of its label. Run the same
    command again to continue a run.

    Examples:

      pad build --images photos/ --out shards/

      pad build --images llava.json --image-root photos/ --models plus --out shards/

      pad build --images urls.parquet --columns image=URL,caption=TEXT --out s3://bucket/shards --dry-run

      pad build --images photos/ --out shards/ --retry-failed
    """
    if dry_run and (run.get("fork") or run["retry_failed"] or run["sample"]):
        rule = "it estimates a build from its beginning, so it goes with none of `fork`, `retry_failed` and `sample`"
        raise UserError("dry_run", dry_run, rule, "leave one of them out")
    cards = _cards(card, dry_run)
    options = runs.run_options(run, preload=not dry_run)
    from pad_pipeline.sources.open import open_source

    source = open_source(images, image_root, _columns(columns))  # a wrong path is found before the slow imports below
    if models == "miniature":
        from pad_pipeline.miniature.files import is_drawn

        if not is_drawn(Path(images)):
            known = "note: the miniature knows drawn scenes only (pad miniature draw)"
            note(f"{known}; of photographs it says nothing true.", "yellow")
    from pad_pipeline.quality.extrapolate import extrapolate, sample_in
    from pad_pipeline.workflows.models.settings import load_models, with_tags
    from pad_pipeline.workflows.runs import build as workflow

    chosen = with_tags(load_models(models), tag_list, tag_thresholds)
    chosen_view = runs.changed_view(chosen.view, view)
    if dry_run:
        from pad_pipeline.workflows.runs.dry_run import estimate

        found = estimate(source, chosen, chosen_view, options)
        operations = found.images * sum(found.operations.values())
        hours = {"hours_by_cards": cards.hours(operations)} if cards else {}
        sample = sample_in(run["out"])
        if run["as_json"]:
            rows = {"sample": [row._asdict() for row in extrapolate(sample)[1]]} if sample else {}
            print_json(dataclasses.asdict(found) | hours | rows)
            return
        _show_estimate(found, cards)
        if sample:
            _show_sample(sample)
        return
    totals = workflow.build(source, run["out"], chosen, chosen_view, options)
    sampled = sample_in(run["out"]) if options.sample else None
    more = {"sample": [row._asdict() for row in extrapolate(sampled)[1]]} if sampled else {}
    runs.finish(totals, run, source.counts, more=more)
    if sampled and not run["as_json"]:
        _show_sample(sampled)
        name = str(run["out"]).rstrip("/")
        say(f"To look at it: pad report {shlex.quote(name)} --out {shlex.quote(name.rpartition('/')[2])}-report")
        if totals["images"] < sampled.run.images:
            say("The same command without --sample annotates the rest.")


def _show_sample(shards: ShardFolder) -> None:
    """Print what all images would give, extrapolated from the sample in the first shards."""
    from pad_pipeline.quality.extrapolate import extrapolate

    sampled, rows = extrapolate(shards)
    title = f"Extrapolated from {counted(sampled, 'image')} of a random sample"
    table = Table("all images", "about", "95% interval", title=title)
    for row in rows:
        table.add_row(row.what, *row.texts)
    console.print(table)


def _columns(text: str) -> dict[str, str]:
    """Parse `image=url,caption=alt` into a dictionary."""
    columns = {}
    for entry in filter(None, text.split(",")):
        name, equals, column = (part.strip() for part in entry.partition("="))
        if not (name and equals and column):
            rule = "it should be NAME=COLUMN,..."
            raise UserError("columns", text, rule, "write for instance image=url,caption=alt")
        columns[name] = column
    return columns


def _cards(card: str, dry_run: bool) -> Any:
    from pad_pipeline.workflows.cards import Cards

    if card and not dry_run:
        raise UserError("card", card, "it goes with `dry_run`", "leave it out, or add `dry_run`")
    return Cards.parse(card) if card else None


def _show_estimate(found: Any, cards: Any) -> None:
    table = Table("what", "how much", title="dry run: nothing was written")
    table.add_row("images", f"{found.images:,} in {found.shards:,} shards")
    table.add_row("their files", f"{decimal(found.input_bytes)} (as far as sizes are known)")
    table.add_row("annotated to measure", f"{counted(found.sampled, 'image')}, {found.failed} failed")
    where, unit = ("one GPU", "GPU hours") if found.on_gpu else ("all cores of this CPU", "hours")
    for name, seconds in found.seconds.items():
        table.add_row(f"  {name}", f"{seconds:.3f} s an image")
    hours = found.images * sum(found.seconds.values()) / 3600
    table.add_row(f"all of it, one worker on {where}", f"{hours:,.2f} hours")
    table.add_row("of that in the models", f"{found.images * found.in_models / 3600:,.2f} {unit}")
    operations = sum(found.operations.values())
    table.add_row("operations of the models", f"{operations / 1e12:,.3f} TFLOP an image")
    if cards:
        from pad_pipeline.workflows.cards import UTILIZATION

        for count, needed in cards.hours(found.images * operations).items():
            where = f"  on {count} x {cards.name}, calculated"
            table.add_row(where, f"{needed:,.2f} hours, if {UTILIZATION:.0%} of the card is used")
    if found.model_megabytes:
        table.add_row("model files, for each node", decimal(found.model_megabytes * 10**6))
    storage = decimal(int(found.images * found.bytes_per_image))
    table.add_row("shards", f"{storage} ({decimal(int(found.bytes_per_image))} an image)")
    console.print(table)
