"""CVAT's own XML ("CVAT for images 1.1"): boxes, polygons, ellipses and masks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
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
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.handed import Handed, HandedSource

IDENTITY = "pad"
"""The attribute of an exported shape: the name of its run, `/`, and the number of the region."""


class CvatSource(AnnotatedSource):
    """The images of an `annotations.xml`, in its order. The file is read image by image.

    Args:
        annotations: the file, or the folder that holds it.
        images: the folder of the images, to which their names are relative.
    """

    def __init__(self, annotations: Path, images: Path | str) -> None:
        super().__init__(annotations, images)
        self._file = xml_file(annotations)

    def entries(self) -> Iterator[Entry]:
        """Yield what the file says of each image."""
        for image in images_of(self._file, self.counts):
            name = (image.get("name") or "").replace("\\", "/")
            width, height = edge(image.get("width")), edge(image.get("height"))
            shapes = [partial(_shape, one, width, height) for one in image]
            paths = [name, f"{image.get('subset')}/{name}"]  # `images/` of a project has folders of subsets
            yield Entry(name or f"image {image.get('id')}", paths, width, height, shapes)


class CvatCorrections(HandedSource):
    """The images of an `annotations.xml` that `pad export cvat` wrote, and CVAT wrote back with corrections.

    CVAT's XML does not say whether somebody looked at an image. So an image without a shape has no region any more.

    Args:
        annotations: the file, or the folder that holds it.
        shards: the run that was exported.
    """

    tool = "cvat"

    def __init__(self, annotations: Path, shards: str) -> None:
        super().__init__(annotations, shards)
        self._file = xml_file(annotations)

    def entries(self) -> Iterator[Handed]:
        """Yield what the file says of each image. Its name is the key of the image in the run."""
        for image in images_of(self._file, self.counts):
            name = (image.get("name") or "").replace("\\", "/")
            runs = {run for one in image if (run := _identity(one)[0])}
            strange = next((run for run in sorted(runs) if run != self.runs[0].run.name), "")
            size = edge(image.get("width")), edge(image.get("height"))
            shapes = partial(_handed, image)
            yield Handed(name, strange, name.rpartition("/")[2].partition(".")[0], None, shapes, size)


def _handed(image: ET.Element, width: int, height: int) -> Iterator[Callable[[], Shape]]:
    def shape(element: ET.Element) -> Shape:
        _, number = _identity(element)
        return _shape(element, width, height) | ({} if number is None else {"region": number})

    return (partial(shape, element) for element in image)


def _identity(element: ET.Element) -> tuple[str, int | None]:
    """Return the name of the run and the number of the region that an exported shape has; empty and None if none."""
    text = next((one.text or "" for one in element.iter("attribute") if one.get("name") == IDENTITY), "")
    run, _, number = text.strip().rpartition("/")
    return run, int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def xml_file(annotations: Path) -> Path:
    """Return the XML file: `annotations`, or the one in that folder; raise `UserError` if it is not there."""
    file = annotations / "annotations.xml" if annotations.is_dir() else annotations
    if not file.is_file():
        raise UserError("annotations", file, "there is no such file", "check the path")
    return file


def images_of(file: Path, counts: Tally) -> Iterator[ET.Element]:
    """Yield the images of an `annotations.xml`, and count the tracks of videos, which are left out.

    Raises:
        UserError: it is no such file.
    """
    try:
        for image in children(file, "annotations"):
            if image.tag == "track":
                counts.note("tracks of a video, which are left out", f"track {image.get('id')}")
            elif image.tag == "image":
                yield image
    except ValueError as error:
        raise UserError("annotations", file, str(error), "export it from CVAT again") from error


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
