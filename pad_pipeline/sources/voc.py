"""Pascal VOC: an XML file for each image, with boxes; and images whose pixels hold the number of their object."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.sources.annotated import (
    AnnotatedSource,
    Entry,
    Shape,
    annotation_files,
    beside,
    box,
    check_mask_size,
    children,
    edge,
    label,
    mask,
    numbers,
    polygon,
)
from pad_pipeline.sources.fields import stem

_FROM_ONE = ("The VOC", "roboflow.ai")
"""How `database` begins in files that count pixels from 1, with the last pixel inside the box: those of VOC itself, and
those that the library supervision writes. Other tools (labelImg, CVAT) write the edges of the box."""


class VocSource(AnnotatedSource):
    """The images of a Pascal VOC data set, with boxes, polygons (as Roboflow writes them) and masks of objects.

    Args:
        annotations: the folder of the XML files.
        images: the folder of the images. An image has the `filename` of its XML file or else the name of that file.
        masks: the folder of the PNG files in which pixels of value n belong to the n-th object of the XML file; by
            default `SegmentationObject` beside `annotations`, if it exists.
    """

    def __init__(self, annotations: Path, images: Path | str, masks: Path | None = None) -> None:
        super().__init__(annotations, images)
        if masks is not None and not masks.is_dir():
            raise UserError("masks", masks, "there is no such folder", "check the path")
        self._folder, self._masks = annotations, masks or annotations.parent / "SegmentationObject"

    def entries(self) -> Iterator[Entry]:
        """Yield what each XML file says."""
        for file in annotation_files(self._folder, ".xml", self.counts):
            root = ET.Element("annotation")
            try:
                root.extend([*children(self._folder / file, root.tag)])
            except ValueError as error:
                yield Entry(file, beside(file, None), problem=f"its annotation file can't be used ({error})")
                continue
            width, height = edge(root.findtext("size/width")), edge(root.findtext("size/height"))
            first = 1 if root.findtext("source/database", "").strip().startswith(_FROM_ONE) else 0
            ids = self._ids(file, width, height)
            shapes = [partial(_object, one, first, number, ids) for number, one in enumerate(root.findall("object"), 1)]
            yield Entry(file, beside(file, root.findtext("filename", "").strip()), width, height, shapes)

    def _ids(self, file: str, width: int | None, height: int | None) -> np.ndarray | None:
        """Return the number of its object for each pixel, `[H, W]`; None if there is no usable PNG file."""
        path = self._masks / f"{stem(file)}.png"
        if not path.is_file():
            return None
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.mode not in ("P", "L") or image.size != (width, height):
                    raise ValueError("it is no image of numbers in the size of its XML file")
                check_mask_size(width, height)
                return np.asarray(image)
        except Exception as error:  # Pillow's decoders raise a dozen types
            self.counts.note("files of masks that can't be used, for which boxes are taken", f"{path}: {error}")
            return None


def _object(element: ET.Element, first: int, number: int, ids: np.ndarray | None) -> Shape:
    """Return the object with a number. `first` is the number of the first pixel of a row or a column. In
    masks, 255 is nobody's."""
    shape, edges, outlines = label(element.findtext("name")), element.find("bndbox"), element.findall("polygon")
    if edges is not None:
        x0, y0, x1, y1 = numbers(edges.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax"))
        shape |= box((x0 - first, y0 - first, x1, y1))
    elif not outlines:
        raise ValueError("they have neither a bndbox nor a polygon")
    if ids is not None and number < 255 and (pixels := ids == number).any():
        return shape | mask(pixels, 0, 0, ids.shape[1], ids.shape[0])
    found = [polygon(value - first for value in numbers(one.text for one in outline)) for outline in outlines]
    return shape | {"segmentation": [one["segmentation"][0] for one in found] or None}
