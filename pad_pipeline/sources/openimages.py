"""OpenImages: boxes in a CSV, one a row, and the names of their classes in another."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.sources.annotated import AnnotatedSource, Entry, Shape, box, label

_EDGES = ("XMin", "YMin", "XMax", "YMax")


class OpenImagesSource(AnnotatedSource):
    """The images of an OpenImages CSV that are in the folder, in its order. The file is read row by row. A box around a
    group of objects is a crowd.

    Args:
        annotations: the CSV with a box in each row. The rows of an image must stand together, as they do in the
            published files.
        images: the folder of the images `IMAGEID.jpg`.
        classes: the CSV with the id and the name of each class.
    """

    skips_missing = True

    def __init__(self, annotations: Path, images: Path | str, classes: Path) -> None:
        super().__init__(annotations, images)
        self._file = annotations
        self._names = {row[0]: row[1] for row in _rows("classes", classes) if len(row) > 1}
        header = next(_rows("annotations", annotations), [])
        if missing := [name for name in ("ImageID", "LabelName", *_EDGES) if name not in header]:
            rule = f"it has no column {missing[0]}"
            raise UserError("annotations", annotations, rule, "give an OpenImages CSV of boxes")
        self._header = header

    def entries(self) -> Iterator[Entry]:
        """Yield the boxes of each image."""
        rows, seen = _rows("annotations", self._file), set[str]()
        next(rows)
        named = (dict(zip(self._header, row, strict=False)) for row in rows if row and self._has_image(row))
        for image, boxes in groupby(named, lambda row: row["ImageID"]):
            if image in seen:
                rule = f"the rows of the image {image} do not stand together"
                raise UserError("annotations", self._file, rule, "sort it by ImageID")
            seen.add(image)
            yield Entry(image, [f"{image}.jpg"], shapes=[partial(self._box, one) for one in boxes])

    def _has_image(self, row: list[str]) -> bool:
        """Return whether a row reaches the column with the image, and count it if it does not."""
        if missing := len(row) <= self._header.index("ImageID"):
            self.counts.note("rows without an ImageID, which are left out", ",".join(row)[:80])
        return not missing

    def _box(self, row: dict[str, str]) -> Shape:
        if (name := self._names.get(row.get("LabelName", ""))) is None:
            raise ValueError("their class is not in the file of classes")
        shape = label(name) | box(row.get(edge) for edge in _EDGES)
        return shape | {"fractions": True, "crowd": row.get("IsGroupOf") == "1"}


def _rows(field: str, path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV."""
    if not path.is_file():
        raise UserError(field, path, "there is no such file", "check the path")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file)
    except (csv.Error, ValueError) as error:
        raise UserError(field, path, f"it is not valid CSV ({error})", "repair or re-download the file") from error
