"""The commands of `pad import` that read the formats of annotations by people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.workflows.commands import runs
from pad_pipeline.workflows.commands.common import INPUT, MODELS, RUN, VIEW
from pad_pipeline.workflows.commands.corrections import CORRECTED_HELP, import_corrections
from pad_pipeline.workflows.commands.options import Options, OptionValues, option, options
from pad_pipeline.workflows.runs.options import RunOptions

if TYPE_CHECKING:
    from pad_pipeline.sources.base import Source

_MODELS_HELP = (
    "`paper`, `plus`, `best`, `miniature`, or a models file (TOML). Only its settings for decoding and the word "
    "embeddings of its LLM are used."
)
COMMON: Options = (
    {"models": (Annotated[str | None, option(MODELS, _MODELS_HELP, show_default="paper")], None)}
    | runs.VIEW_OPTIONS
    | runs.IMPORT_OPTIONS
)
"""The options of all these commands."""
_CVAT_OPTIONS = COMMON | options(RunOptions, RUN, "shard_size", unset="512; with `shards`, as before")
_FIVL_OPTIONS = COMMON | options(View, VIEW, "fit size=view-size patch", unset="as FiVL's grids")


def import_coco(
    *,
    annotations: Annotated[Path, option(INPUT, "COCO's instances.json (polygons, RLE, crowds), or a panoptic JSON.")],
    images: Annotated[str, option(INPUT, "Folder or URL of the images, to which file_name is relative.")],
    captions: Annotated[
        Path | None, option(INPUT, "Captions: COCO's captions.json, a LLaVA JSON, or another list.")
    ] = None,
    masks: Annotated[
        Path | None, option(INPUT, "Folder of a panoptic file's PNGs; by default the file's name without .json.")
    ] = None,
    common: Annotated[OptionValues, COMMON],
) -> None:
    """Write shards from COCO annotations: human masks as regions, categories as labels.

    Example:

      pad import coco --annotations instances_val2017.json --images val2017/ --out human/
    """
    from pad_pipeline.sources.coco import CocoSource

    _import("coco", lambda: CocoSource(annotations, images, captions, masks), common)


def import_yolo(
    *,
    annotations: Annotated[Path, option(INPUT, "A YOLO data set: its data.yaml, or the folder that holds it.")],
    splits: Annotated[str, option(INPUT, "The splits to read, such as train,val; by default all of them.")] = "",
    common: Annotated[OptionValues, COMMON],
) -> None:
    """Write shards from a YOLO data set: boxes or polygons as regions, classes as labels.

    Example:

      pad import yolo --annotations coco8-seg/data.yaml --splits train --out human/
    """
    from pad_pipeline.sources.yolo import YoloSource

    chosen = tuple(part.strip() for part in splits.split(",") if part.strip())
    _import("yolo", lambda: YoloSource(annotations, chosen), common)


def import_voc(
    *,
    annotations: Annotated[Path, option(INPUT, "Folder of the XML files, one for each image.")],
    images: Annotated[str, option(INPUT, "Folder or URL of the images.")],
    masks: Annotated[
        Path | None, option(INPUT, "Folder of PNGs of objects; by default SegmentationObject beside the XML files.")
    ] = None,
    common: Annotated[OptionValues, COMMON],
) -> None:
    """Write shards from Pascal VOC's XML files: boxes, polygons or masks as regions, names as labels.

    Example:

      pad import voc --annotations VOC2012/Annotations --images VOC2012/JPEGImages --out human/
    """
    from pad_pipeline.sources.voc import VocSource

    _import("voc", lambda: VocSource(annotations, images, masks), common)


def import_cvat(
    *,
    annotations: Annotated[Path, option(INPUT, "CVAT's annotations.xml, or the folder that holds it.")],
    images: Annotated[
        str | None,
        option(
            INPUT, "Folder or URL of the images; the names in annotations.xml are relative to it. Or give --shards."
        ),
    ] = None,
    shards: Annotated[str | None, option(INPUT, f"{CORRECTED_HELP} Its images, view and LLM are taken.")] = None,
    common: Annotated[OptionValues, _CVAT_OPTIONS],
) -> None:
    """Write shards from CVAT's own XML ("CVAT for images 1.1"): boxes, polygons and masks as regions.

    With --shards, the file has corrections of regions that `pad export cvat` wrote: those that nobody changed stay as
    the models made them.

    Examples:

      pad import cvat --annotations export/annotations.xml --images export/images/ --out human/

      pad import cvat --annotations annotations.xml --shards shards/ --out corrected/
    """
    if (images is None) == (shards is None):
        rule = "the images are either in a folder, or in the run that `pad export cvat` wrote for correction"
        raise UserError("images", images, rule, "give one of `images` and `shards`")
    if shards is not None:
        from pad_pipeline.sources.cvat import CvatCorrections

        import_corrections(CvatCorrections(annotations, shards), common, common)
        return
    assert images is not None
    from pad_pipeline.sources.cvat import CvatSource

    _import("cvat", lambda: CvatSource(annotations, images), common)


def import_labelme(
    *,
    annotations: Annotated[Path, option(INPUT, "Folder of the JSON files, one for each image.")],
    images: Annotated[str, option(INPUT, "Folder or URL of the images.")],
    common: Annotated[OptionValues, COMMON],
) -> None:
    """Write shards from labelme's JSON files: polygons, rectangles, circles and masks as regions.

    Example:

      pad import labelme --annotations labels/ --images photos/ --out human/
    """
    from pad_pipeline.sources.labelme import LabelmeSource

    _import("labelme", lambda: LabelmeSource(annotations, images), common)


def import_openimages(
    *,
    annotations: Annotated[Path, option(INPUT, "CSV with a box in each row.")],
    images: Annotated[str, option(INPUT, "Folder or URL of the images, such as 0001eeaf4aed83f9.jpg.")],
    classes: Annotated[Path, option(INPUT, "CSV of the classes' names: class-descriptions-boxable.csv.")],
    common: Annotated[OptionValues, COMMON],
) -> None:
    """Write shards from the boxes of OpenImages: those whose image is in the folder.

    Example:

      pad import openimages --annotations train-annotations-bbox.csv --classes classes.csv --images photos/ --out human/
    """
    from pad_pipeline.sources.openimages import OpenImagesSource

    _import("openimages", lambda: OpenImagesSource(annotations, images, classes), common)


def import_fivl(
    *,
    annotations: Annotated[Path, option(INPUT, "FiVL's JSON: fivl_instruct.json.")],
    grids: Annotated[Path, option(INPUT, "Folder of FiVL's grids: dataset_grounded.tar, unpacked.")],
    images: Annotated[str, option(INPUT, "Folder or URL of LLaVA's images: coco/, gqa/, ocr_vqa/, textvqa/, vg/.")],
    common: Annotated[OptionValues, _FIVL_OPTIONS],
) -> None:
    """Write shards from FiVL (Intel/fivl-instruct): key phrases of LLaVA's conversations, each with its patches.

    So a training with patch labels can begin before any model has annotated an image. The masks are as coarse as FiVL's
    grids of 24 x 24 patches.

    Example:

      pad import fivl --annotations fivl_instruct.json --grids dataset_grounded/ --images llava/ --out fivl/
    """
    from pad_pipeline.sources.fivl import VIEW as FIVL_VIEW
    from pad_pipeline.sources.fivl import FivlSource, check_view

    check_view(runs.changed_view(FIVL_VIEW, common))
    _import("fivl", lambda: FivlSource(annotations, images, grids), common, FIVL_VIEW)


def _import(kind: str, source: Callable[[], Source], common: OptionValues, view: View | None = None) -> None:
    """Write shards from the annotated images of a source. `kind` is the name of their format, and `view` the view by
    default, in place of that of the models."""
    chosen = runs.run_options(common)
    annotated = source()
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs import build as workflow

    settings = load_models(common.get("models", "paper"))
    shown = runs.changed_view(view or settings.view, common)
    totals = workflow.import_coco(annotated, common["out"], settings.llm, settings.decode, shown, chosen, kind)
    runs.finish(totals, common, annotated.counts)
