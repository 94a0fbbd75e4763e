"""labelme's own JSON files: one for each image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pad_pipeline.sources.annotated import (
    AnnotatedSource,
    Entry,
    Shape,
    annotation_files,
    beside,
    box,
    check_mask_size,
    edge,
    ellipse,
    label,
    mask,
    numbers,
    polygon,
)
from pad_pipeline.sources.base import parse_json
from pad_pipeline.storage import is_url


class LabelmeSource(AnnotatedSource):
    """The images of labelme's JSON files. Shapes with one label and one `group_id` are one object.

    Args:
        annotations: the folder of the JSON files.
        images: the folder of the images. `imagePath` is relative to the JSON file; where that leads to no image below
            this folder, its end and the name of the JSON file are tried.
    """

    def __init__(self, annotations: Path, images: Path | str) -> None:
        super().__init__(annotations, images)
        self._folder = annotations

    def entries(self) -> Iterator[Entry]:
        """Yield what each JSON file says."""
        for file in annotation_files(self._folder, ".json", self.counts):
            try:
                data = parse_json((self._folder / file).read_text("utf-8-sig"))
            except (ValueError, RecursionError, OSError) as error:
                yield Entry(file, beside(file, None), problem=f"its annotation file can't be used ({error})")
                continue
            if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
                self.counts.note("JSON files that are not labelme's, which are left out", file)
                continue
            width, height = edge(data.get("imageWidth")), edge(data.get("imageHeight"))
            shapes = [partial(_shape, one, width, height) for one in data["shapes"]]
            yield Entry(file, self._paths(file, data.get("imagePath")), width, height, shapes)

    def _paths(self, file: str, image: Any) -> list[str]:
        if not isinstance(image, str) or not image:
            return beside(file, None)
        image = below = image.replace("\\", "/")
        while below.startswith(("../", "./")):
            below = below.partition("/")[2]
        others = [*beside(file, Path(image).name), below]
        if is_url(self.root):
            return others
        return [os.path.relpath((self._folder / file).parent.resolve() / image, self.root), *others]

    def joined(self, annotations: list[Shape]) -> list[Shape]:
        """Join the polygons of each group; a mask stays an object of its own."""
        groups: dict[Any, Shape] = {}
        for number, one in enumerate(annotations):
            group, is_mask = one.pop("group"), isinstance(one["segmentation"], dict)
            first = groups.setdefault(number if group is None or is_mask else (one["label"], group), one)
            if first is not one:
                first |= {"box": None, "segmentation": _outlines(first) + _outlines(one)}
        return [*groups.values()]


def _outlines(annotation: Shape) -> list[list[float]]:
    """Return the polygons of an annotation; the one of a box has its corners."""
    if annotation["segmentation"]:
        polygons: list[list[float]] = annotation["segmentation"]
        return polygons
    x, y, w, h = annotation["box"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _shape(value: Any, width: int | None, height: int | None) -> Shape:
    """Return a shape of an image of a size."""
    if not isinstance(value, dict):
        raise ValueError("they are no objects")
    group, points, kind = value.get("group_id"), value.get("points"), value.get("shape_type") or "polygon"
    named = label(value.get("label")) | {"group": group if isinstance(group, int | str) else None}
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError("their points are not pairs of numbers")
    found = numbers(edge for point in points for edge in point)
    if kind in ("polygon", "oriented_rectangle"):
        return named | polygon(found)
    if kind in ("rectangle", "circle", "mask") and len(found) != 4:
        raise ValueError(f"their {kind} has not two points")
    if kind == "rectangle":
        return named | box((*map(min, found[:2], found[2:]), *map(max, found[:2], found[2:])))
    if kind == "circle":
        x, y = found[:2]
        return named | ellipse(x, y, radius := math.dist(found[:2], found[2:]), radius)
    if kind == "mask":
        check_mask_size(width, height)
        return named | mask(_pixels(value.get("mask")), int(found[0]), int(found[1]), width, height)
    raise ValueError(f"a {str(kind)[:40]} is no area")


def _pixels(text: Any) -> np.ndarray:
    """Return the pixels `[H, W]` of a PNG file in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
            check_mask_size(*image.size)
            return np.asarray(image.convert("L"))
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise ValueError("their mask is no PNG image") from error
