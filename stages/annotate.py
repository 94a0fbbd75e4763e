"""Human annotations -> regions: takes the place of tagger, detector and segmenter where people did their work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.masks import check_mask
from pad_pipeline.records import ImageRecord, Region, Tag, as_box, restored_region
from pad_pipeline.stages.base import Stage

_MOST_STEPS = 20_000_000
"""Pixels along polygons: pycocotools takes 40 bytes and more for each, and does not look whether it got them."""
_ROUNDED = 0.01
"""Pixels that an edge moves because a tool writes fewer digits, and not because somebody moved it."""


class HumanRegions(Stage):
    """COCO annotations as regions: polygons, compressed or plain RLE; a missing segmentation means the whole box."""

    name = "annotate"

    def prepare(self, row: ImageRecord) -> list[Region]:
        """The regions in the file's order."""
        return [_region(row, annotation) for annotation in row.annotations]

    def finish(self, row: ImageRecord, output: list[Region]) -> None:
        """Set the regions, and the tags to their distinct labels."""
        row.regions = output
        row.tags = [Tag(label, 1.0) for label in dict.fromkeys(region.label for region in output)]
        if not output:
            row.status = "empty"


def _region(row: ImageRecord, annotation: Mapping[str, Any]) -> Region:
    """One annotation as a region.

    Raises:
        ValueError: it is malformed, or is for an image of another size; the reason names the annotation.
    """
    _check_size(row, annotation)
    try:
        box = annotation["box"]
        if box is not None:
            box = _numbers(box, "bbox")
            if len(box) != 4 or min(box[2:]) < 0:
                raise ValueError("its bbox should be four numbers [x, y, width, height]")
            x, y, width, height = box
            box = np.array([x, y, x + width, y + height]).clip(0, [row.width, row.height] * 2)
        rle = _rle(annotation["segmentation"], box, row)
        if box is None:
            x, y, width, height = coco_mask.toBbox(rle)
            box = np.array([x, y, x + width, y + height])
    except Exception as error:  # outside data: whatever a step trips over is what is wrong with it
        reason = str(error) if type(error) is ValueError else f"it can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {reason}") from error
    counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
    rle = {"size": [row.height, row.width], "counts": counts}
    if annotation.get("pad") is not None:
        return _exported(annotation, box, rle, row)
    return Region(annotation["label"], as_box(box), rle=rle, crowd=annotation["crowd"])


def _exported(annotation: Mapping[str, Any], box: np.ndarray, rle: dict[str, Any], row: ImageRecord) -> Region:
    """A region that `pad export` wrote, with what COCO has no word for. Where somebody changed `bbox` or `score` since,
    those hold, and not what is under `pad`."""
    try:
        own, score = annotation["pad"], annotation.get("score")
        region = restored_region(own | {"label": annotation["label"]}, rle, annotation["crowd"])
        x0, y0, x1, y1 = region.box
        if not (0 <= x0 <= x1 <= row.width and 0 <= y0 <= y1 <= row.height):
            raise ValueError(f"the box {region.box} is not one inside the image")
        x, y, width, height = _numbers(own["mask_box"], "mask_box") if "mask_box" in own else coco_mask.toBbox(rle)
        written = np.array([region.box, (x, y, x + width, y + height)])  # `bbox` is the one or the other, by the export
        if np.abs(written - box).max(1).min() > _ROUNDED:
            region.box = as_box(box)
        if score is not None:
            (region.score,) = _numbers([score], "score")
        return region
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = f"what `pad export` wrote of it can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {rule}") from error


def _check_size(row: ImageRecord, annotation: Mapping[str, Any]) -> None:
    stated = annotation["width"], annotation["height"]
    if stated not in ((None, None), (row.width, row.height)):
        raise ValueError(
            f"the annotations are for an image of {stated[0]!r} x {stated[1]!r}, and the upright image is "
            f"{row.width} x {row.height}"
        )


def _rle(segmentation: Any, box: np.ndarray | None, row: ImageRecord) -> dict[str, Any]:
    """Any of COCO's forms as one compressed RLE. All numbers are checked before C code sees them: it trusts them."""
    if not segmentation:
        if box is None:
            raise ValueError("it has neither a segmentation nor a bbox")
        left, top, right, bottom = box.tolist()
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    if isinstance(segmentation, dict):
        if segmentation["size"] != [row.height, row.width]:
            raise ValueError(f"its mask is {segmentation['size']} and the image {[row.height, row.width]} (H, W)")
        if isinstance(segmentation["counts"], list):
            return _from_runs(segmentation, row)
        return _checked(segmentation, row)
    polygons = [_numbers(polygon, "polygon") for polygon in segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three or more pairs of numbers")
    for polygon in polygons:
        for corners, edge in ((polygon[::2], row.width), (polygon[1::2], row.height)):
            if min(corners) < -edge or max(corners) > 2 * edge:
                raise ValueError("a polygon reaches farther out of the image than the image is large")
    steps = sum(
        max(abs(x - u), abs(y - v)) + 1
        for p in polygons
        for x, y, u, v in zip(p[::2], p[1::2], p[2::2] + p[:1], p[3::2] + p[1:2], strict=True)
    )
    if steps > _MOST_STEPS:
        raise ValueError("its polygons are longer than any outline of this image")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, row.height, row.width))


def _from_runs(segmentation: dict[str, Any], row: ImageRecord) -> dict[str, Any]:
    runs = segmentation["counts"]
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its run lengths should be whole numbers of 0 or more")
    if sum(runs) != row.width * row.height:
        raise ValueError("its run lengths do not add up to the image")
    return coco_mask.frPyObjects(segmentation, row.height, row.width)


def _checked(rle: dict[str, Any], row: ImageRecord) -> dict[str, Any]:
    """A compressed RLE as pycocotools itself would write it."""
    check_mask(rle, row.width, row.height)
    if coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)))["counts"].decode("ascii") != rle["counts"]:
        raise ValueError("its run lengths are not in the usual form")
    return rle


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise ValueError(f"its {what} should hold finite numbers only")
    return values
