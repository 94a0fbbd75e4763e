"""What the readers of annotation tools' own files share: entries of images with shapes, and the shapes themselves."""

from __future__ import annotations

import errno
import math
import os
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.errors import rename_field
from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally, path_problem, require_folder
from pad_pipeline.sources.fields import name_as_words, stem
from pad_pipeline.sources.folder import FolderSource
from pad_pipeline.storage import is_url

Shape = dict[str, Any]
"""A part of an annotation: `box`, `segmentation` or both, in the form of COCO; and `label`, if it is a whole one."""
_ENDINGS = (".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".webp", ".bmp")
"""Endings that are tried for an image of which a file gives only the name."""
_ELLIPSE = np.linspace(0, 2 * math.pi, 360, endpoint=False)


class Entry(NamedTuple):
    """What a file says of one image."""

    where: str
    """How messages call the entry: its file, or the name of the image."""
    paths: list[str]
    """The paths that the image may have below the root, the most likely one first."""
    width: int | None = None
    height: int | None = None
    shapes: Iterable[Callable[[], Shape]] = ()
    """Functions that return the annotations; a `ValueError` says why "they", annotations of that kind, are left out."""
    problem: str = ""
    """Why the entry can't be used; empty if it can."""


class AnnotatedSource(ABC):
    """The images that annotation files name, each with its annotations.

    An annotation that can't be used is left out and counted; its image keeps the others.

    Args:
        annotations: the file or the folder of the annotations.
        images: the folder of the images, or its URL.
    """

    skips_missing = False
    """Whether images that are not in the folder are left out, because it is usual that most are not."""

    def __init__(self, annotations: Path, images: Path | str) -> None:
        self.origin, self.root = str(annotations), require_folder(images)
        self.counts = Tally()

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yield what the files say of each image."""

    def joined(self, annotations: list[Shape]) -> list[Shape]:
        """Return the annotations of an image, after those that are parts of one object were joined."""
        return annotations

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        seen = set[str]()
        for entry in self.entries():
            source, found = self._path(entry.paths)
            problem = path_problem(source) or entry.problem
            if source in seen:
                self.counts.note("entries of images that have one already, which are left out", entry.where)
                continue
            if self.skips_missing and not found and not problem:
                self.counts.note("images that are not in the folder, which are left out", source)
                continue
            seen.add(source)
            annotations = [] if problem else self.joined([*self._read(entry)])
            yield Planned(stem(source) or entry.where, source, annotations=annotations, problem=problem)

    def _read(self, entry: Entry) -> Iterator[Shape]:
        usual = {"box": None, "segmentation": None, "crowd": False, "width": entry.width, "height": entry.height}
        for number, shape in enumerate(entry.shapes, 1):
            where = f"{entry.where}: {number}"
            try:
                yield usual | shape() | {"id": where}
            except ValueError as error:
                self.counts.note(f"annotations left out, because {error}", where)

    def _path(self, paths: list[str]) -> tuple[str, bool]:
        """Return the first path at which there is a file, or else the first one; and whether there is a file. Files of
        a store are not looked up."""
        good = [os.path.normpath(path) for path in paths if not path_problem(path)]
        for path in good:
            try:
                if is_url(self.root) or Path(self.root, path).is_file():
                    return path, True
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # no file can have such a name; another error says nothing
                    raise
        return paths[0], False


def annotation_files(folder: Path, ending: str, counts: Tally) -> Iterator[str]:
    """Yield the paths, relative to the folder, of all files below it with an ending, in order."""
    with rename_field(images="annotations"):
        source = FolderSource(folder)
        for below, names in source.walk():
            for name, _ in names:
                if name.startswith(".") or Path(name).suffix.lower() != ending:  # macOS adds files such as ._a.xml
                    continue
                path = f"{below}/{name}" if below else name
                if (readable := os.fsencode(path).decode("utf-8", "backslashreplace")) == path:
                    yield path
                else:
                    counts.note("annotation files whose name is not valid UTF-8, which are left out", readable)
    counts.add(source.counts)


def beside(file: str, name: str | None) -> list[str]:
    """Return the paths that the image of an annotation file may have: that of `name` in the folder of the file, `name`
    itself, and the path of the file with the endings of images."""
    names = [name.replace("\\", "/")] if name else []
    return [*(str(Path(file).parent / one) for one in names), *names, *(f"{stem(file)}{one}" for one in _ENDINGS)]


def children(path: Path, root: str) -> Iterator[ET.Element]:
    """Yield the children of the root of an XML file. Memory holds one of them at a time.

    Raises:
        ValueError: it is not XML with that root, or it has a DOCTYPE: entities can blow a small file up to any size.
    """
    builder = _Children(root)
    parser = ET.XMLParser(target=builder)
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 16):
                parser.feed(data)
                yield from builder.take()
        parser.close()
        yield from builder.take()
    except (ET.ParseError, LookupError, OSError) as error:
        raise ValueError(f"it is not valid XML ({getattr(error, 'strerror', None) or error})") from error


class _Children(ET.TreeBuilder):
    """Builds the children of the root, and forgets each when it is taken."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self._name, self._depth, self._ended = root, 0, list[ET.Element]()

    def doctype(self, *_: Any) -> None:
        raise ValueError("it has a DOCTYPE, which no annotation needs")

    def start(self, tag: Any, attributes: Any) -> ET.Element:
        element = super().start(tag, attributes)
        if not self._depth:
            self._root = element
            if tag != self._name:
                raise ValueError(f"its first element is <{str(tag)[:40]}>, and should be <{self._name}>")
        self._depth += 1
        return element

    def end(self, tag: Any) -> ET.Element:
        element = super().end(tag)
        self._depth -= 1
        if self._depth == 1:
            self._ended.append(element)
            self._root.clear()
        return element

    def take(self) -> Iterator[ET.Element]:
        ended, self._ended = self._ended, []
        yield from ended


def edge(value: Any) -> int | None:
    """Return the width or height that a file states; None if it is unknown: missing, or not a positive whole number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if 0 < number < 1e9 and number.is_integer() else None


def label(value: Any) -> Shape:
    """Return a label as words.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(value, str) or not name_as_words(value):
        raise ValueError("they have no label")
    return {"label": name_as_words(value)}


def numbers(values: Iterable[Any]) -> list[float]:
    """Return values as numbers.

    Raises:
        ValueError: one is no number, or not finite.
    """
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("they are not numbers") from None
    if not all(map(math.isfinite, found)):
        raise ValueError("they are not finite numbers")
    return found


def whole(values: Iterable[Any]) -> list[int]:
    """Return values as whole numbers.

    Raises:
        ValueError: one is no whole number.
    """
    found = numbers(values)
    if not all(map(float.is_integer, found)):
        raise ValueError("they are not whole numbers")
    return [int(value) for value in found]


def box(edges: Iterable[Any]) -> Shape:
    """Return the box with the edges left, top, right and bottom.

    Raises:
        ValueError: the edges are not four numbers in order.
    """
    x0, y0, x1, y1 = numbers(edges)
    if x1 < x0 or y1 < y0:
        raise ValueError("the width or height of their box is negative")
    return {"box": [x0, y0, x1 - x0, y1 - y0]}


def polygon(points: Iterable[Any]) -> Shape:
    """Return the polygon with the corners x, y, x, y, ...

    Raises:
        ValueError: they are not three pairs of numbers or more.
    """
    found = numbers(points)
    if len(found) < 6 or len(found) % 2:
        raise ValueError("their polygon is not three or more pairs of numbers")
    return {"segmentation": [found]}


def turned(center: tuple[float, float], points: np.ndarray, degrees: float) -> Shape:
    """Return the polygon with the corners `points` `[N, 2]`, relative to the center, turned clockwise around it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return polygon((points @ np.array([[cos, sin], [-sin, cos]]) + center).ravel().tolist())


def ellipse(x: float, y: float, across: float, down: float, degrees: float = 0) -> Shape:
    """Return the ellipse with a center and two radii, in pixels, as a polygon.

    Raises:
        ValueError: a radius is not positive.
    """
    if min(across, down) <= 0:
        raise ValueError("the radius of their ellipse is not positive")
    return turned((x, y), np.stack([across * np.cos(_ELLIPSE), down * np.sin(_ELLIPSE)], 1), degrees)


def mask(pixels: np.ndarray, left: int, top: int, width: int | None, height: int | None) -> Shape:
    """Return the mask of which a file holds the part `pixels` `[h, w]`.

    Args:
        pixels: the part; what is not 0 belongs to the object.
        left: the column of the image where the part begins.
        top: the row of the image where the part begins.
        width: the width of the image.
        height: the height of the image.

    Raises:
        ValueError: the part is empty or not inside the image, or the size of the image is unknown or too large.
    """
    check_mask_size(width, height)
    assert width and height
    if min(left, top) < 0 or left + pixels.shape[1] > width or top + pixels.shape[0] > height:
        raise ValueError("their mask is not inside the image")
    if not pixels.any():
        raise ValueError("their mask is empty")
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels != 0
    rle = coco_mask.encode(whole)
    return {"segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")}}


def check_mask_size(width: int | None, height: int | None) -> None:
    """Refuse sizes for which no mask can be made: a file of a few bytes can claim any.

    Raises:
        ValueError: the size of the image is unknown, or above the limit for images.
    """
    if not width or not height or width * height > DecodeSettings().max_pixels:
        raise ValueError("they have a mask, and the size of their image is unknown or too large")
