"""Corrections of a run that people made in another tool, in a file that a `pad export` wrote and the tool wrote back.

The regions are compared with those of the run. A region that is as it was exported stays as the models made it, with
its scores, alternates and mask. A renamed one keeps box and mask. All others are regions of people.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pad_pipeline.records import IndexRow, Planned, RegionJson, ShardRow
from pad_pipeline.sources.annotated import Shape
from pad_pipeline.sources.fields import name_as_words
from pad_pipeline.sources.stored import StoredSource

_ROUNDED = 0.01
"""An edge that moved by at most this many pixels was rounded by a tool; a larger move was made by a person."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Handed(NamedTuple):
    """What the file of a tool says of one image."""

    where: str
    """How messages call the image."""
    run: str
    """The `Run.name` that the image was exported from; empty if the file does not say it."""
    key: str
    """The key of the image in that run."""
    id: str | None
    """The id of the image; None if the file does not say it."""
    shapes: Callable[[int, int], Iterable[Callable[[], Shape]]]
    """Takes width and height of the image, and returns functions that return its shapes, as in `Entry`. A shape that
    was exported has a `region`, its number in the image."""
    size: tuple[int | None, int | None] = (None, None)
    """The width and height that the file states; None if it does not."""


class HandedSource(StoredSource):
    """The images of a run that a tool's file has, in the order of that file, each with its corrected regions.

    Args:
        annotations: the file.
        shards: the run that was exported.
    """

    def __init__(self, annotations: Path, shards: str) -> None:
        super().__init__([shards])
        self.file, self.origin = annotations, str(annotations)
        self._last: tuple[str, list[IndexRow]] = ("", [])

    @abstractmethod
    def entries(self) -> Iterator[Handed]:
        """Yield what the file says of each image."""

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        (shards,) = self.runs
        self._note_unfinished(shards)
        rows = {row["key"]: (name, number) for name in shards.names for number, row in enumerate(shards.index(name))}
        seen = set[str]()
        for handed in self.entries():
            if handed.run and handed.run != shards.run.name:
                self.counts.note("images of another run, which are left out", handed.where)
            elif handed.key not in rows:
                self.counts.note("images that are not in the run, which are left out", handed.where)
            elif handed.key in seen:
                self.counts.note("entries of images that have one already, which are left out", handed.where)
            else:
                seen.add(handed.key)
                yield from self._corrected(handed, *rows[handed.key])

    def _corrected(self, handed: Handed, name: str, number: int) -> Iterator[Planned]:
        (shards,) = self.runs
        row = self._row(name, number)
        stated = zip(handed.size, (row["width"], row["height"]), strict=True)
        if row["status"] == "failed":
            self.counts.note("images that failed in the run, which are left out", handed.where)
        elif handed.id is not None and handed.id != row["id"]:
            self.counts.note("images that are not in the run, which are left out", handed.where)
        elif any(edge not in (None, true) for edge, true in stated):
            self.counts.note("images of another size than in the run, which are left out", handed.where)
        else:
            regions = shards.sample(name, row, image=False).checked_regions()
            corrections = [*self._compared(handed.where, [*self._read(handed, row)], regions)]
            place = ShardRow(f"{self._prefix(shards)}{name}.parquet", number, max(row["image_bytes"], 0))
            yield Planned(row["id"], row["source"], annotations=corrections, place=place, sample_sha256=row["sha256"])

    def _row(self, name: str, number: int) -> IndexRow:
        if self._last[0] != name:
            self._last = (name, self.runs[0].index(name))
        return self._last[1][number]

    def _read(self, handed: Handed, row: IndexRow) -> Iterator[Shape]:
        for number, shape in enumerate(handed.shapes(row["width"], row["height"]), 1):
            where = f"{handed.where}: {number}"
            try:
                yield {"box": None, "segmentation": None, "crowd": False} | shape() | {"id": where}
            except ValueError as error:
                self.counts.note(f"annotations left out, because {error}", where)

    def _compared(self, where: str, shapes: list[Shape], regions: list[RegionJson]) -> Iterator[Shape]:
        """Yield a correction for each shape: `kept` is the number of the region whose box and mask it has; `label`, the
        new name of that region. Without `kept`, the shape itself is the region. New regions stand last, and the others
        in their order in the run, whatever the order of the tool is."""
        numbers = _numbers(shapes, regions)
        ranks = [len(regions) if number is None else number for number in numbers]
        for place in sorted(range(len(shapes)), key=ranks.__getitem__):
            shape, number = shapes[place], numbers[place]
            shape.pop("region", None)
            if number is None:
                self.counts.note("regions that people drew", shape["id"])
                yield shape
            elif not _same(shape, regions[number]):
                self.counts.note("regions of which people changed the shape", shape["id"])
                yield shape
            elif _named(shape, regions[number]):
                self.counts["regions that stay as the models made them"] += 1
                yield {"kept": number}
            else:
                self.counts.note("regions that people renamed", shape["id"])
                yield {"kept": number, "label": shape["label"]}
        for number in sorted({*range(len(regions))} - {*numbers}):
            self.counts.note("regions that people deleted", f"{where}: region {number}")


def _numbers(shapes: list[Shape], regions: list[RegionJson]) -> list[int | None]:
    """Return the number of the region that each shape was exported from; None for a new one. A shape without a number,
    or a copy with the number of an earlier one, is the region that it equals, if no other shape is."""
    left = dict(enumerate(regions))
    numbers = [number if left.pop(number := shape.get("region", -1), None) else None for shape in shapes]
    for alike in (lambda shape, one: _same(shape, one) and _named(shape, one), _same):
        for place, shape in enumerate(shapes):
            if numbers[place] is None:
                found = next((number for number, one in left.items() if alike(shape, one)), None)
                if found is not None:
                    numbers[place] = found
                    del left[found]
    return numbers


def _same(shape: Shape, region: RegionJson) -> bool:
    """Return whether a shape is the box or the mask of a region."""
    if isinstance(shape["segmentation"], dict):
        return bool(shape["segmentation"] == region["rle"])
    if shape["segmentation"] or not shape["box"]:
        return False
    x, y, width, height = shape["box"]
    edges = zip((x, y, x + width, y + height), region["box"], strict=True)
    return all(abs(edge - before) <= _ROUNDED for edge, before in edges)


def _named(shape: Shape, region: RegionJson) -> bool:
    return bool(shape["label"] == name_as_words(xml_text(region["label"])))


def xml_text(text: str) -> str:
    """Return a text of unknown origin without the characters that XML can't hold, each replaced."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
