"""`pad export`: write shards in formats that other tools open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_pipeline.choices import Shapes
from pad_pipeline.console import say, track
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import Shards, counted, plain

ExportOut = Annotated[str, typer.Option(help="Folder on this machine: new, empty, or with an earlier export.")]

ShapesOption = Annotated[Shapes, typer.Option(help="What people correct: one mask or one box for each region.")]
ImageUrl = Annotated[
    str, typer.Option(help="URL of images/ for the tasks; by default that of a local storage of Label Studio.")
]


def export_coco(shards: Shards, out: ExportOut) -> None:
    """Write COCO's instances.json with masks as RLE, and images/. `pad import coco` reads them.

    Example:

      pad export coco shards/ --out coco/
    """
    from pad_pipeline.exports import coco

    _export("coco", shards, out, coco.export_coco)


def export_fiftyone(shards: Shards, out: ExportOut) -> None:
    """Write a folder that FiftyOne opens as a COCODetectionDataset: labels.json, and the images in data/.

    Example:

      pad export fiftyone shards/ --out fiftyone/
    """
    from pad_pipeline.exports import coco

    _export("fiftyone", shards, out, partial(coco.export_coco, fiftyone=True))
    say(coco.how_fiftyone_opens(Path(out)))


def export_parquet(shards: Shards, out: ExportOut) -> None:
    """Write regions.parquet, with one row for each region: its image, label, scores, box, area and RLE.

    Example:

      pad export parquet shards/ --out table/
    """
    from pad_pipeline.exports import table

    _export("parquet", shards, out, table.export_table)


def export_label_studio(
    shards: Shards, out: ExportOut, shapes: ShapesOption = "masks", image_url: ImageUrl = ""
) -> None:
    """Write tasks.json with the regions as predictions, config.xml and images/ for Label Studio.

    Create a project with config.xml as its labeling configuration, serve the images, and import tasks.json. Export the
    corrected annotations as JSON; `pad import label-studio` reads them.

    Example:

      pad export label-studio shards/ --out tasks/ --shapes boxes
    """
    from pad_pipeline.exports import label_studio

    write = partial(label_studio.export_label_studio, shapes=shapes, image_url=image_url)
    _export("label-studio", shards, out, write)


def export_cvat(shards: Shards, out: ExportOut, shapes: ShapesOption = "masks") -> None:
    """Write annotations.xml ("CVAT for images 1.1"), labels.json and images/ for CVAT.

    Create a task with the images, and labels.json as its labels (Raw); then upload annotations.xml. Export the
    corrected annotations in the same format; `pad import cvat --shards` reads them.

    Example:

      pad export cvat shards/ --out cvat/
    """
    from pad_pipeline.exports import cvat

    _export("cvat", shards, out, partial(cvat.export_cvat, shapes=shapes))


def export_hub(
    shards: Shards,
    out: ExportOut,
    name: Annotated[str, typer.Option(help="Name of the dataset, for its card.")] = "Patch-Aligned Dataset",
    license: Annotated[str, typer.Option(help="License of the images on the hub: cc-by-4.0, other, ...")] = "other",
    repository: Annotated[str, typer.Option("--push", help="Hub repository to upload to, OWNER/NAME.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
) -> None:
    """Write a dataset for the Hugging Face hub: the shards, and a card with statistics, models and provenance.

    Nothing is uploaded without --push. The dataset contains run.json and plan.parquet, which hold paths of the build.

    Examples:

      pad export hub shards/ --license cc-by-4.0 --out hub/

      pad export hub shards/ --out hub/ --push me/my-pad --private
    """
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
        raise UserError("out", out, "an export is written to a disk", "name a folder on this machine, then copy it")
    shards = open_shards(where)
    counts: Counter[str] = Counter()
    steps = write(shards, Target(Path(out), kind))
    try:
        for counts in track(steps, "writing", len(shards.names)):  # noqa: B007 (the last counts are the totals)
            pass
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # shards may come from anywhere
        rule = f"what a shard says of an image is not of pad's format ({type(error).__name__}: {str(error)[:200]})"
        raise UserError("shards", where, rule, "see `pad verify --deep`; export the shards that pad wrote") from error
    left = {what: number for what, number in counts.items() if what not in ("images", "regions")}
    said = f"{counted(counts['images'], 'image')}, {counted(counts['regions'], 'region')} in {out}"
    say(plain("; ".join([said, *(f"{number} {what}" for what, number in left.items())]) + "."))
