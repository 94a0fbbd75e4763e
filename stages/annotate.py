"""The stage annotate: it turns people's COCO annotations into regions, without any model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.masks import decode_mask
from pad_pipeline.records import ImageRecord, Region, Tag, as_box, restored_region
from pad_pipeline.sources.fivl import VIEW as FIVL_VIEW
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.patch_grid import mask_of, read_grid

_LONGEST_OUTLINE = 20_000_000
"""The greatest total length of an image's polygons, in pixels. pycocotools allocates at least 40 bytes for each pixel,
and does not check whether the allocation succeeded."""
_ROUNDED = 0.01
"""An edge that moved by at most this many pixels was rounded by a program; a larger move was made by a person."""


class HumanRegions(Stage[None, None]):
    """Turns COCO annotations into regions. A mask may be polygons or RLE, compressed or not; without one, the box is
    the mask."""

    name = "annotate"

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions, in the order of the annotations, and make each of their labels a tag.

        An annotation that can't be used is left out; the row's stage and reason then say how many are, and why the
        first one is.
        """
        for annotation in row.annotations[:1]:
            edges = zip((annotation["width"], annotation["height"]), (row.width, row.height), strict=True)
            if any(stated not in (None, true) for stated, true in edges):
                sizes = f"{annotation['width']!r} x {annotation['height']!r}"
                rule = f"the annotations are for an image of {sizes}"
                raise ValueError(f"{rule}, and the upright image is {row.width} x {row.height}")
        row.regions, problems = [], []
        for annotation in row.annotations:
            try:
                row.regions.append(human_region(row, annotation))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            row.note(self.name, f"{len(problems)} of {len(row.annotations)} annotations are left out: {problems[0]}")
        row.add_tags("human", [Tag(label, 1.0) for label in dict.fromkeys(region.label for region in row.regions)])
        row.status = "ok" if row.regions else "empty"


def human_region(row: ImageRecord, annotation: Mapping[str, Any]) -> Region:
    """Turn one annotation into a region.

    Raises:
        ValueError: the annotation is malformed.
    """
    try:
        if annotation.get("fractions"):
            annotation = _in_pixels(annotation, row)
        box = annotation["box"]
        if box is not None:
            box = _numbers(box, "bbox")
            if len(box) != 4 or min(box[2:]) < 0:
                raise ValueError("its bbox should be four numbers [x, y, width, height]")
            x, y, width, height = box
            box = np.array([x, y, x + width, y + height]).clip(0, [row.width, row.height] * 2)
            if not annotation["segmentation"] and (box[2:] <= box[:2]).any():
                raise ValueError("its bbox has no area inside the image")
        rle = _rle(annotation["segmentation"], box, row)
        if box is None:
            x, y, width, height = coco_mask.toBbox(rle)
            box = np.array([x, y, x + width, y + height])
    except MemoryError:
        raise
    except Exception as error:  # any other exception here means that the annotation is bad
        reason = str(error) if type(error) is ValueError else f"it can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {reason}") from error
    counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
    rle = {"size": [row.height, row.width], "counts": counts}
    if annotation.get("pad") is not None:
        return _exported(annotation, box, rle, row)
    return Region(annotation["label"], as_box(box), rle=rle, crowd=annotation["crowd"])


def _in_pixels(annotation: Mapping[str, Any], row: ImageRecord) -> dict[str, Any]:
    """Return an annotation in pixels whose box and polygons are in fractions of the image."""
    box, size = annotation["box"], (row.width, row.height)
    polygons = [
        [value * size[axis % 2] for axis, value in enumerate(polygon)] for polygon in annotation["segmentation"] or []
    ]
    pixels = box and [value * size[axis % 2] for axis, value in enumerate(box)]
    return {**annotation, "box": pixels, "segmentation": polygons or None}


def _exported(annotation: Mapping[str, Any], box: np.ndarray, rle: dict[str, Any], row: ImageRecord) -> Region:
    """Restore a region that `pad export` wrote, from the entry `pad`, with the fields that COCO does not have.

    The annotation itself also has `bbox` and `score`. If a person changed them after the export, the changes count.
    """
    try:
        extra, score = annotation["pad"], annotation.get("score")
        region = restored_region(extra | {"label": annotation["label"]}, rle, annotation["crowd"])
        x0, y0, x1, y1 = region.box
        if not (0 <= x0 <= x1 <= row.width and 0 <= y0 <= y1 <= row.height):
            raise ValueError(f"the box {region.box} is not inside the image")
        x, y, width, height = _numbers(extra["mask_box"], "mask_box") if "mask_box" in extra else coco_mask.toBbox(rle)
        # Depending on its settings, the export wrote one of these two boxes as `bbox`.
        written = np.array([region.box, (x, y, x + width, y + height)])
        if np.abs(written - box).max(1).min() > _ROUNDED:
            region.box = as_box(box)
        if score is not None:
            (region.score,) = _numbers([score], "score")
        return region
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = f"its entry `pad`, which `pad export` wrote, can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"annotation {annotation['id']}: {rule}") from error


def _rle(segmentation: Any, box: np.ndarray | None, row: ImageRecord) -> dict[str, Any]:
    """Convert a mask from any of COCO's forms, or FiVL's grid, to compressed RLE. Check all numbers, which pycocotools
    does not."""
    if not segmentation:
        if box is None:
            raise ValueError("it has neither a segmentation nor a bbox")
        left, top, right, bottom = box.tolist()
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    if isinstance(segmentation, dict) and "grid" in segmentation:
        mask = mask_of(read_grid(Path(segmentation["grid"]), FIVL_VIEW.grid), FIVL_VIEW, row.width, row.height)
        if not mask.any():
            raise ValueError("its grid is empty")
        of_grid: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return of_grid
    if isinstance(segmentation, dict):
        if segmentation["size"] != [row.height, row.width]:
            raise ValueError(f"its mask is {segmentation['size']} and the image {[row.height, row.width]} (H, W)")
        return _from_rle(segmentation, row)
    polygons = [_numbers(polygon, "polygon") for polygon in segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three or more pairs of numbers")
    length, size = 0.0, np.array([row.width, row.height])
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if (points < -size).any() or (points > 2 * size).any():
            raise ValueError("a polygon extends beyond the image by more than the image's own size")
        length += (np.abs(points - np.roll(points, -1, 0)).max(1) + 1).sum()
    if length > _LONGEST_OUTLINE:
        raise ValueError("its polygons are longer than any outline in this image")
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, row.height, row.width))
    return merged


def _from_rle(rle: dict[str, Any], row: ImageRecord) -> dict[str, Any]:
    runs = rle["counts"]
    if not isinstance(runs, list):
        mask = decode_mask(rle, row.width, row.height)
        if coco_mask.encode(np.asfortranarray(mask))["counts"].decode("ascii") != runs:
            raise ValueError("its run lengths are not written as pycocotools writes them")
        return rle
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its run lengths should be whole numbers of 0 or more")
    if sum(runs) != row.width * row.height:
        raise ValueError("its run lengths do not add up to the number of pixels")
    compressed: dict[str, Any] = coco_mask.frPyObjects(rle, row.height, row.width)
    return compressed


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise ValueError(f"its {what} should hold finite numbers only")
    return values
