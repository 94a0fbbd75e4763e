"""`pad retarget`, `pad filter`, `pad merge`: write new shards from shards, without running a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from pad_pipeline.choices import Status
from pad_pipeline.errors import UserError
from pad_pipeline.sources.selection import Selection
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.workflows.commands.common import INPUT, MODELS, Shards, reading, seen_by_workers
from pad_pipeline.workflows.commands.options import OptionValues, option, options
from pad_pipeline.workflows.commands.runs import OLD_VIEW_OPTIONS, REWRITE_OPTIONS, changed_view, finish, run_options

if TYPE_CHECKING:
    from pad_pipeline.sources.stored import StoredSource

REGIONS = "Regions"
Llm = Annotated[str, option(MODELS, "New LLM for the labels' word embeddings: folder, hub name, or `miniature`.")]
EDIT_OPTIONS = options(
    EditSettings, REGIONS, "min_score min_label_score min_predicted_iou min_patches nms_iou nms_iou_across_labels"
) | options(EditSettings, REGIONS, "label_map keep_labels drop_labels", Path, unset="")
"""The regions that stay, and their labels. On the command line, a list of labels is a text file."""
_Status = StrEnum("Status", get_args(Status))  # type: ignore[misc]  # typer knows no list of a Literal
SELECTION_OPTIONS = (
    options(Selection, INPUT, "statuses=status", list[_Status], unset="")
    | options(Selection, INPUT, "labels=label", list[str], unset="")
    | options(Selection, INPUT, "ids keys drop_keys", Path, unset="")
    | options(Selection, INPUT, "min_regions min_edge")
)
"""The images that are taken."""


def retarget(
    *,
    shards: Shards,
    view: Annotated[OptionValues, OLD_VIEW_OPTIONS],
    llm: Llm = "",
    edits: Annotated[OptionValues, EDIT_OPTIONS],
    run: Annotated[OptionValues, REWRITE_OPTIONS],
) -> None:
    """Write shards again with another view, patch grid or LLM, or with fewer or renamed regions.

    Shards hold masks at full size and all scores, so no model runs, and this takes minutes where a build takes days.
    Run the same command again to continue.

    Examples:

      pad retarget shards/ --fit pad --out stage2/

      pad retarget shards/ --llm meta-llama/Llama-3.1-8B --view-size 384 --patch 16 --out llama3/

      pad retarget shards/ --min-score 0.35 --drop-labels vague.txt --out sure/
    """
    from pad_pipeline.quality.label_names import read_label_map
    from pad_pipeline.sources.stored import StoredSource

    lists = {name: _lines(name, edits[name]) for name in ("keep_labels", "drop_labels") if name in edits}
    names = {"label_map": read_label_map(edits["label_map"])} if "label_map" in edits else {}
    chosen = EditSettings(**edits | lists | names)
    write_again(StoredSource([shards]), run, view, llm, chosen)


def apply_filter(
    *,
    shards: Shards,
    selection: Annotated[OptionValues, SELECTION_OPTIONS],
    run: Annotated[OptionValues, REWRITE_OPTIONS],
) -> None:
    """Write shards with only some of the images. The images themselves do not change.

    `pad report` saves the keys of flagged and of failed images as text files for `--keys`.

    Examples:

      pad filter shards/ --status ok --min-regions 3 --out rich/

      pad filter shards/ --label dog --label cat --out pets/

      pad filter shards/ --keys keys.txt --out flagged/

      pad filter shards/ --drop-keys copies.jsonl --out once/
    """
    from pad_pipeline.sources.stored import StoredSource

    ids = {"ids": _lines("ids", selection["ids"])} if "ids" in selection else {}
    keys = {name: _keys(name, selection[name], shards) for name in ("keys", "drop_keys") if name in selection}
    chosen = Selection(**selection | ids | keys)
    if chosen == Selection():
        rule = "no option says which images to take"
        remedy = "give `statuses`, `labels`, `ids`, `keys`, `drop_keys`, `min_regions` or `min_edge`"
        raise UserError("shards", shards, rule, remedy)
    source = StoredSource([seen_by_workers(shards, run)], chosen)
    if chosen.labels:  # the samples are read
        read = {name: run[name] for name in ("engine", "address", "wait")}
        source.over = reading(shards, read, len(source.runs[0].names))
    write_again(source, run, failed_wanted="failed" in chosen.statuses)


def merge(
    *,
    shards: Annotated[list[str], typer.Argument(help="Folders or URLs of shards, in the order of their images.")],
    view: Annotated[OptionValues, OLD_VIEW_OPTIONS],
    corrections: Annotated[
        bool,
        option(INPUT, "Let later runs replace images of the first one: those that people corrected.", "--corrections"),
    ] = False,
    llm: Llm = "",
    run: Annotated[OptionValues, REWRITE_OPTIONS],
) -> None:
    """Write the images of several runs into one run.

    Images with the same id get different keys. If the runs differ in view or LLM, name the view or LLM for all images.
    With --corrections, an image of the first run that a later run has too is taken from that later run.

    Examples:

      pad merge monday/ tuesday/ s3://bucket/wednesday --out week/

      pad merge shards/ corrected/ --corrections --out better/
    """
    from pad_pipeline.sources.corrected import CorrectedSource
    from pad_pipeline.sources.stored import StoredSource

    write_again(CorrectedSource(shards) if corrections else StoredSource(shards), run, view, llm)


def write_again(
    source: StoredSource,
    run: OptionValues,
    view: OptionValues | None = None,
    llm: str = "",
    edits: EditSettings | None = None,
    failed_wanted: bool = False,
) -> None:
    """Write the images of a source into a new run, and print its counts."""
    first = source.runs[0].run
    options = run_options({"shard_size": max(first.shard_size, 1)} | run)
    from pad_pipeline.labels import LabelSettings
    from pad_pipeline.miniature.shipped import member_reference
    from pad_pipeline.workflows.runs.rewrite import rewrite

    labels = None
    if llm:
        context = (first.settings.get("llm") or {}).get("context", "sentence")
        labels = LabelSettings(llm=member_reference(llm, "llm"), context=context)
    new_view = changed_view(first.view, view) if view else None
    totals = rewrite(source, run["out"], options, new_view, labels, edits)
    finish(totals, run, source.counts, source="" if failed_wanted else "shards")


def _lines(name: str, path: Path) -> list[str]:
    """Return the different lines of a text file, sorted."""
    try:
        lines = sorted({line.strip() for line in path.read_text("utf-8-sig").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({getattr(error, 'strerror', None) or type(error).__name__})"
        raise UserError(name, path, rule, "give a text file with one entry a line") from error
    if not lines:
        raise UserError(name, path, "there is nothing in it", "give a text file with one entry a line")
    return lines


def _keys(name: str, path: Path, shards: str) -> list[str]:
    """Return the keys in a file of `pad duplicates`, or in a text file with one key a line.

    Raises:
        UserError: the file can't be read, has a line without a key, or `pad duplicates` wrote it for another run.
    """
    from pad_pipeline.duplicates.keys_file import keys_of
    from pad_pipeline.shards.run import Run
    from pad_pipeline.storage import folder_at

    return keys_of(name, path, _lines(name, path), Run.read(folder_at(shards)))
