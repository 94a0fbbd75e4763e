"""Human annotations -> regions: takes the place of tagger, detector and segmenter where people did their work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.records import ImageRecord, Region, Tag, as_box
from stages.base import Stage


class HumanRegions(Stage):
    """COCO annotations as regions: polygons, compressed or plain RLE; a missing segmentation means the whole box."""

    name = "annotate"

    def prepare(self, row: ImageRecord) -> None:
        """Nothing: no picture is needed."""

    def process(self, rows: list[ImageRecord], inputs: list[None]) -> None:
        """Set each row's regions in the file's order, and its tags to their distinct labels."""
        for row in rows:
            regions = [_region(row, annotation) for annotation in row.annotations]
            row.regions = regions
            row.tags = [Tag(label, 1.0) for label in row.labels]
            if not regions:
                row.status = "empty"


def _region(row: ImageRecord, annotation: dict[str, Any]) -> Region:
    name = f"annotation {annotation['id']}"
    stated = (annotation["width"], annotation["height"])
    if stated != (None, None) and stated != (row.width, row.height):
        raise ValueError(
            f"the annotations are for a picture of {stated[0]} x {stated[1]}, and the upright picture is "
            f"{row.width} x {row.height}"
        )
    if annotation["box"] is not None and not _is_box(annotation["box"]):
        raise ValueError(f"{name}: its bbox should be four finite numbers [x, y, width, height]")
    try:
        rle = _rle(annotation["segmentation"], annotation["box"], row)
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
    except Exception as error:  # pycocotools raises whatever its C code trips over
        raise ValueError(f"{name}: its segmentation can't be read ({type(error).__name__}: {error})") from error
    x, y, width, height = annotation["box"] or coco_mask.toBbox(rle).tolist()
    box = np.array([x, y, x + width, y + height], np.float64).clip(0, [row.width, row.height] * 2)
    return Region(
        annotation["label"],
        as_box(box),
        rle={"size": [row.height, row.width], "counts": counts},
        crowd=annotation["crowd"],
    )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box)
    )


def _rle(segmentation: Any, box: list[float] | None, row: ImageRecord) -> dict[str, Any]:
    """Any of COCO's forms as one compressed RLE."""
    if not segmentation and box is None:
        raise ValueError("it has neither a segmentation nor a bbox")
    if not segmentation:
        x, y, width, height = box  # type: ignore[misc]
        segmentation = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [row.height, row.width]:
            raise ValueError(f"its mask is {segmentation['size']} and the picture {[row.height, row.width]} (H, W)")
        if isinstance(segmentation["counts"], list):
            if min(segmentation["counts"], default=0) < 0:
                raise ValueError("a run length is negative")
            if sum(segmentation["counts"]) != row.width * row.height:
                raise ValueError("its run lengths do not add up to the picture")
            return coco_mask.frPyObjects(segmentation, row.height, row.width)
        return _checked(segmentation)
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        raise ValueError("a polygon needs three or more pairs of numbers")
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, row.height, row.width))


def _checked(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE whose runs fill its picture exactly; pycocotools reads others into memory that is not theirs."""
    rle = {"size": [int(edge) for edge in rle["size"]], "counts": str(rle["counts"])}
    if coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)))["counts"].decode("ascii") != rle["counts"]:
        raise ValueError("its run lengths do not add up to the picture")
    return rle
