"""CVAT's own XML ("CVAT for images 1.1"): boxes, polygons, ellipses and masks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pad_pipeline.errors import UserError
from pad_pipeline.sources.annotated import (
    AnnotatedSource,
    Entry,
    Shape,
    box,
    check_mask_size,
    children,
    edge,
    ellipse,
    label,
    mask,
    numbers,
    polygon,
    turned,
    whole,
)


class CvatSource(AnnotatedSource):
    """The images of an `annotations.xml`, in its order. The file is read image by image.

    Args:
        annotations: the file, or the folder that holds it.
        images: the folder of the images, to which their names are relative.
    """

    def __init__(self, annotations: Path, images: Path | str) -> None:
        super().__init__(annotations, images)
        self._file = annotations / "annotations.xml" if annotations.is_dir() else annotations
        if not self._file.is_file():
            raise UserError("annotations", self._file, "there is no such file", "check the path")

    def entries(self) -> Iterator[Entry]:
        """Yield what the file says of each image."""
        try:
            for image in children(self._file, "annotations"):
                if image.tag == "track":
                    self.counts.note("tracks of a video, which are left out", f"track {image.get('id')}")
                elif image.tag == "image":
                    name = (image.get("name") or "").replace("\\", "/")
                    width, height = edge(image.get("width")), edge(image.get("height"))
                    shapes = [partial(_shape, one, width, height) for one in image]
                    paths = [name, f"{image.get('subset')}/{name}"]  # `images/` of a project has folders of subsets
                    yield Entry(name or f"image {image.get('id')}", paths, width, height, shapes)
        except ValueError as error:
            raise UserError("annotations", self._file, str(error), "export it from CVAT again") from error


def _shape(element: ET.Element, width: int | None, height: int | None) -> Shape:
    """Return a shape of an image of a size."""
    named, kind = label(element.get("label")), element.tag
    degrees = numbers([element.get("rotation", 0)])[0]
    if kind == "box":
        shape = box(element.get(name) for name in ("xtl", "ytl", "xbr", "ybr"))
        if degrees:
            x, y, w, h = shape["box"]
            corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
            shape = turned((x + w / 2, y + h / 2), corners, degrees)
        return named | shape
    if kind == "polygon":
        points = [one.split(",") for one in element.get("points", "").split(";")]
        return named | polygon(value for point in points for value in point)
    if kind == "ellipse":
        x, y, across, down = numbers(element.get(name) for name in ("cx", "cy", "rx", "ry"))
        return named | ellipse(x, y, across, down, degrees)
    if kind == "mask":
        check_mask_size(width, height)
        left, top, w, h = whole(element.get(name) for name in ("left", "top", "width", "height"))
        runs = whole(element.get("rle", "").split(","))
        if min(w, h, *runs) < 0 or not sum(runs) <= w * h <= (width or 0) * (height or 0):
            raise ValueError("the run lengths of their mask do not fit its size")
        pixels = np.zeros(w * h, np.uint8)  # row by row; after the last run, all is background
        pixels[: sum(runs)] = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs)
        return named | mask(pixels.reshape(h, w), left, top, width, height)
    raise ValueError(f"a <{str(kind)[:40]}> is neither a box nor an area")
