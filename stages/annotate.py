"""The stage annotate: it turns annotations made by people into regions, in the place of the three models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.masks import decode_mask
from pad_pipeline.records import ImageRecord, Region, Tag, as_box, restored_region
from pad_pipeline.stages.base import Stage

_MOST_STEPS = 20_000_000
"""The greatest length of an image's polygons, in pixels. pycocotools allocates 40 bytes and more for each pixel, and
does not check that it got them."""
_ROUNDED = 0.01
"""An edge that moved by no more than this many pixels was rounded by a tool, and not moved by a person."""


class HumanRegions(Stage[list[Region], list[Region]]):
    """Turns COCO annotations into regions: polygons, compressed or plain RLE, or boxes alone, which become masks."""

    name = "annotate"

    def prepare(self, row: ImageRecord) -> list[Region]:
        """Return the image's regions, in the order of the file."""
        return [_region(row, annotation) for annotation in row.annotations]

    def finish(self, row: ImageRecord, output: list[Region]) -> None:
        """Set the regions, and the tags to their distinct labels."""
        row.regions = output
        row.tags = [Tag(label, 1.0) for label in dict.fromkeys(region.label for region in output)]
        row.status = "ok" if output else "empty"


def _region(row: ImageRecord, annotation: Mapping[str, Any]) -> Region:
    """Turn one annotation into a region.

    Raises:
        ValueError: the annotation is malformed, or for an image of another size; the message names the annotation.
    """
    stated = annotation["width"], annotation["height"]
    if stated not in ((None, None), (row.width, row.height)):
        sizes = f"{stated[0]!r} x {stated[1]!r}, and the upright image is {row.width} x {row.height}"
        raise ValueError(f"the annotations are for an image of {sizes}")
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
    except Exception as error:  # any exception here means that the annotation is bad
        reason = str(error) if type(error) is ValueError else f"it can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {reason}") from error
    counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
    rle = {"size": [row.height, row.width], "counts": counts}
    if annotation.get("pad") is not None:
        return _exported(annotation, box, rle, row)
    return Region(annotation["label"], as_box(box), rle=rle, crowd=annotation["crowd"])


def _exported(annotation: Mapping[str, Any], box: np.ndarray, rle: dict[str, Any], row: ImageRecord) -> Region:
    """Restore a region that `pad export` wrote, with the fields that COCO does not have.

    `bbox` and `score` are outside `pad` too. Where somebody changed them after the export, the changed values count.
    """
    try:
        extra, score = annotation["pad"], annotation.get("score")
        region = restored_region(extra | {"label": annotation["label"]}, rle, annotation["crowd"])
        x0, y0, x1, y1 = region.box
        if not (0 <= x0 <= x1 <= row.width and 0 <= y0 <= y1 <= row.height):
            raise ValueError(f"the box {region.box} is not one inside the image")
        x, y, width, height = _numbers(extra["mask_box"], "mask_box") if "mask_box" in extra else coco_mask.toBbox(rle)
        # The export wrote one of these two as `bbox`, depending on its settings.
        written = np.array([region.box, (x, y, x + width, y + height)])
        if np.abs(written - box).max(1).min() > _ROUNDED:
            region.box = as_box(box)
        if score is not None:
            (region.score,) = _numbers([score], "score")
        return region
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = f"what `pad export` wrote of it can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {rule}") from error


def _rle(segmentation: Any, box: np.ndarray | None, row: ImageRecord) -> dict[str, Any]:
    """Turn a mask in any of COCO's forms into one compressed RLE.

    All numbers are checked here, because the C code of pycocotools does not check them.
    """
    if not segmentation:
        if box is None:
            raise ValueError("it has neither a segmentation nor a bbox")
        left, top, right, bottom = box.tolist()
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    if isinstance(segmentation, dict):
        if segmentation["size"] != [row.height, row.width]:
            raise ValueError(f"its mask is {segmentation['size']} and the image {[row.height, row.width]} (H, W)")
        return (_from_runs if isinstance(segmentation["counts"], list) else _checked)(segmentation, row)
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
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, row.height, row.width))
    return merged


def _from_runs(segmentation: dict[str, Any], row: ImageRecord) -> dict[str, Any]:
    runs = segmentation["counts"]
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its run lengths should be whole numbers of 0 or more")
    if sum(runs) != row.width * row.height:
        raise ValueError("its run lengths do not add up to the image")
    rle: dict[str, Any] = coco_mask.frPyObjects(segmentation, row.height, row.width)
    return rle


def _checked(rle: dict[str, Any], row: ImageRecord) -> dict[str, Any]:
    """Return a compressed RLE unchanged, if it is valid and written as pycocotools itself would write it."""
    mask = decode_mask(rle, row.width, row.height)
    if coco_mask.encode(np.asfortranarray(mask))["counts"].decode("ascii") != rle["counts"]:
        raise ValueError("its run lengths are not in the usual form")
    return rle


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise ValueError(f"its {what} should hold finite numbers only")
    return values
