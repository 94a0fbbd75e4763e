"""`pad retarget`, `pad filter`, `pad merge`: shards from shards, without a model."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import AsJson, Engine, Out, Shards, finish, supervise
from pad_pipeline.workflows.commands.flags import RunFlags, ViewFlags, expanded

if TYPE_CHECKING:
    from pad_pipeline.sources.stored import StoredSource
    from pad_pipeline.stages.edit import EditSettings

AS_BEFORE = ViewFlags()
Llm = Annotated[
    str, typer.Option(help="LLM whose word embeddings the labels get: folder, hub name, or `miniature`; as before.")
]


class Status(StrEnum):
    """What became of an image."""

    ok = "ok"
    empty = "empty"
    failed = "failed"


@expanded
def retarget(
    *,
    shards: Shards,
    out: Out,
    view: ViewFlags,
    llm: Llm = "",
    min_score: Annotated[float, typer.Option(help="Regions whose box has a lower score go.", min=0, max=1)] = 0.0,
    min_predicted_iou: Annotated[
        float | None, typer.Option(help="Regions whose mask the segmenter thinks less of go.")
    ] = None,
    nms_iou: Annotated[
        float, typer.Option(help="Of boxes of one label that overlap more, the best stays; 1 for all.", min=0, max=1)
    ] = 1.0,
    nms_iou_across_labels: Annotated[float, typer.Option(help="The same whatever their labels.", min=0, max=1)] = 1.0,
    label_map: Annotated[
        Path | None, typer.Option(help='JSON of labels and their new names, {"puppy": "dog"}; an empty name drops.')
    ] = None,
    keep_labels: Annotated[
        Path | None, typer.Option(help="Text file with the labels whose regions stay, one a line, in their new names.")
    ] = None,
    drop_labels: Annotated[
        Path | None, typer.Option(help="Text file with the labels whose regions go, one a line.")
    ] = None,
    run: RunFlags,
    as_json: AsJson = False,
) -> None:
    """Write shards anew for another view, patch grid or LLM, or with fewer or renamed regions; no model runs.

    Masks are stored at full size and everything found has its score, so this takes minutes where a build takes days.
    Run the same command again to continue.

    Examples:

      pad retarget shards/ --fit pad --out stage2/

      pad retarget shards/ --llm meta-llama/Llama-3.1-8B --view-size 384 --patch 16 --out llama3/

      pad retarget shards/ --min-score 0.35 --drop-labels vague.txt --out sure/
    """
    from pad_pipeline.sources.stored import StoredSource
    from pad_pipeline.stages.edit import EditSettings

    edits = EditSettings(
        label_map=_mapping(label_map),
        keep_labels=_lines("--keep-labels", keep_labels),
        drop_labels=_lines("--drop-labels", drop_labels),
        min_score=min_score,
        min_predicted_iou=min_predicted_iou,
        nms_iou=nms_iou,
        nms_iou_across_labels=nms_iou_across_labels,
    )
    _rewrite(StoredSource([shards]), out, run, as_json, view, llm, edits)


@expanded
def filter_shards(
    *,
    shards: Shards,
    out: Out,
    status: Annotated[
        list[Status] | None, typer.Option(help="Only images that are ok, empty or failed. May be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only images with a region of this label. May be repeated: any of them.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Text file with the ids of the images to take, one a line.")] = None,
    min_regions: Annotated[int, typer.Option(help="Only images with at least so many regions.", min=0)] = 0,
    min_edge: Annotated[
        int, typer.Option(help="Only images whose shorter edge has at least so many pixels.", min=0)
    ] = 0,
    run: RunFlags,
    as_json: AsJson = False,
) -> None:
    """Write shards with some of the images alone, each as it was.

    Examples:

      pad filter shards/ --status ok --min-regions 3 --out rich/

      pad filter shards/ --label dog --label cat --out pets/
    """
    from pad_pipeline.sources.stored import Selection, StoredSource

    chosen = Selection(
        statuses=frozenset(one.value for one in status or ()),
        labels=frozenset(label or ()),
        ids=frozenset(_lines("--ids", ids)),
        min_regions=min_regions,
        min_edge=min_edge,
    )
    if chosen == Selection():
        rule = "nothing is said about which images are wanted"
        raise UserError("filter", shards, rule, "give --status, --label, --ids, --min-regions or --min-edge")
    _rewrite(StoredSource([shards], chosen), out, run, as_json, failed_wanted="failed" in chosen.statuses)


@expanded
def merge(
    *,
    shards: Annotated[list[str], typer.Argument(help="Folders or URLs of shards, in the order that is wanted.")],
    out: Out,
    view: ViewFlags,
    llm: Llm = "",
    run: RunFlags,
    as_json: AsJson = False,
) -> None:
    """Write the images of several runs into one. Where ids are repeated, each image keeps a key of its own.

    Runs of different views or LLMs are brought to one that is named.

    Example:

      pad merge monday/ tuesday/ s3://bucket/wednesday --out week/
    """
    from pad_pipeline.sources.stored import StoredSource

    _rewrite(StoredSource(shards), out, run, as_json, view, llm)


def _rewrite(
    source: StoredSource,
    out: str,
    run: RunFlags,
    as_json: bool,
    view: ViewFlags = AS_BEFORE,
    llm: str = "",
    edits: EditSettings | None = None,
    failed_wanted: bool = False,
) -> None:
    first = source.runs[0].run
    options = run.options()
    if not run.shard_size:
        options = replace(options, shard_size=max(first.shard_size, 1))
    if run.engine is Engine.local:
        supervise()
    from pad_pipeline.labels import LabelSettings
    from pad_pipeline.miniature.shipped import resolve
    from pad_pipeline.workflows.runs.rewrite import rewrite

    labels = None
    if llm:
        context = (first.settings.get("llm") or {}).get("context", "sentence")
        labels = LabelSettings(llm=resolve(llm, "llm"), context=context)
    new_view = None if view == AS_BEFORE else view.over(first.view)
    totals = rewrite(source, out, options, new_view, labels, edits)
    finish(totals, out, dict(source.counts), run.max_failed, as_json, source="" if failed_wanted else "shards")


def _lines(option: str, path: Path | None) -> list[str]:
    """The lines of a text file, each once, in order of the alphabet."""
    if path is None:
        return []
    try:
        lines = sorted({line.strip() for line in path.read_text("utf-8-sig").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({getattr(error, 'strerror', None) or type(error).__name__})"
        raise UserError(option, path, rule, "give a text file with one entry a line") from error
    if not lines:
        raise UserError(option, path, "there is nothing in it", "give a text file with one entry a line")
    return lines


def _mapping(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    from pad_pipeline.sources.base import read_json

    found = read_json("--label-map", path)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError("--label-map", path, "it should be an object of texts", 'write {"puppy": "dog", "blur": ""}')
    return found
