"""`pad export`: shards in the formats that other tools open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_pipeline.console import say, track
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import Shards, counted, plain

ExportOut = Annotated[
    str, typer.Option("--out", help="Folder on this machine to write: new, empty, or an earlier export.")
]


def export_coco(shards: Shards, out: ExportOut) -> None:
    """COCO's instances.json with masks as RLE, and the images in images/. `pad import coco` takes it back.

    Example:

      pad export coco shards/ --out coco/
    """
    from pad_pipeline.exports import coco

    _export("coco", shards, out, coco.export_coco)


def export_fiftyone(shards: Shards, out: ExportOut) -> None:
    """A folder that FiftyOne opens as a COCODetectionDataset, with labels.json and the images in data/.

    Example:

      pad export fiftyone shards/ --out fiftyone/
    """
    from pad_pipeline.exports import coco

    _export("fiftyone", shards, out, coco.export_fiftyone)
    say(coco.how_fiftyone_opens(Path(out)))


def export_parquet(shards: Shards, out: ExportOut) -> None:
    """regions.parquet, a row for each region: label, scores, box, area, RLE, and the image that it is in.

    Example:

      pad export parquet shards/ --out table/
    """
    from pad_pipeline.exports import table

    _export("parquet", shards, out, table.export_table)


def export_hub(
    shards: Shards,
    out: ExportOut,
    name: Annotated[str, typer.Option(help="The dataset's name, on its card.")] = "Patch-Aligned Dataset",
    license: Annotated[
        str, typer.Option("--license", help="Of the images, as the hub calls it: cc-by-4.0, other, ...")
    ] = "other",
    repository: Annotated[
        str, typer.Option("--push", help="Upload to this repository, OWNER/NAME; else nothing leaves.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
) -> None:
    """A dataset repository of the Hugging Face hub: the shards, and a card with statistics, models and provenance.

    Nothing is uploaded without --push. run.json and plan.parquet go along, with the paths that the build was given.

    Examples:

      pad export hub shards/ --license cc-by-4.0 --out hub/

      pad export hub shards/ --out hub/ --push me/my-pad --private
    """
    from functools import partial

    from pad_pipeline.exports import hub
    from pad_pipeline.exports.card import REPOSITORY
    from pad_pipeline.workflows.models.catalog import LICENSES

    write = partial(hub.export_hub, name=name, license=license, licenses=LICENSES, repository=repository or REPOSITORY)
    _export("hub", shards, out, write)
    if repository:
        say(hub.push(Path(out), repository, private))


def _export(kind: str, where: str, out: str, write: Callable[[Any, Any], Iterator[Counter[str]]]) -> None:
    from pad_pipeline.exports.target import Target
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.storage import is_url

    if not out or is_url(out):
        raise UserError("--out", out, "an export is written to a disk", "name a folder on this machine, then copy it")
    shards = open_shards(where)
    counts: Counter[str] = Counter()
    steps = write(shards, Target(Path(out), kind))
    try:
        for counts in track(steps, "writing", len(shards.names)):  # noqa: B007 (the last is what is wanted)
            pass
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # shards come from anywhere
        rule = f"what a shard says of an image is not of pad's format ({type(error).__name__}: {str(error)[:200]})"
        raise UserError("shards", where, rule, "see `pad verify --deep`; export the shards that pad wrote") from error
    left = {what: number for what, number in counts.items() if what not in ("images", "regions")}
    said = f"{counted(counts['images'], 'image')}, {counted(counts['regions'], 'region')} in {out}"
    say(plain("; ".join([said, *(f"{number} {what}" for what, number in left.items())]) + "."))
