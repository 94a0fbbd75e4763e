"""A YOLO data set: `data.yaml`, images, and beside each image a text file with its boxes or polygons."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.fields import name_as_words, stem
from pad_pipeline.sources.folder import FolderSource

_SPLITS = ("train", "val", "valid", "test")


class YoloSource:
    """The images of a YOLO data set, split after split, each with its annotations.

    A line of a label file is a class and a box (center x, center y, width, height, as fractions of the image), with or
    without a score, or a class and the corners of a polygon.

    Args:
        annotations: the `data.yaml`, or the folder that holds it.
        splits: the splits to read; by default all that `data.yaml` names.

    Raises:
        UserError: there is no readable `data.yaml`, or no folder that it names.
    """

    def __init__(self, annotations: Path, splits: tuple[str, ...] = ()) -> None:
        file = next((annotations / name for name in ("data.yaml", "data.yml") if (annotations / name).is_file()), None)
        self._file = file or annotations
        self.origin, self.counts = str(self._file), Tally()
        facts = self._read()
        self._names = self._class_names(facts.get("names"))
        wanted = [split for split in splits or _SPLITS if facts.get(split)]
        if not wanted:
            raise self._wrong(
                f"it names no {' or '.join(splits or _SPLITS)}", "name a folder of images under one of them"
            )
        entries = [(split, entry) for split in wanted for entry in _listed(facts[split])]
        found = {split: self._folder(entry, str(facts.get("path") or "")) for split, entry in entries}
        if missing := [split for split, folder in found.items() if folder is None]:
            rule = f"the folder that it names under {missing[0]!r} is not there"
            if len(missing) == len(found):
                raise self._wrong(rule, "correct the path")
            for split in missing:
                self.counts.note("splits whose folder is not there", split)
        self._folders = [folder for folder in found.values() if folder is not None]
        here = str(self._file.parent.resolve())
        for folder in self._folders:
            if os.path.commonpath([here, folder]) != here:
                self.counts.note("folders outside the folder of data.yaml, whose images are read", folder)
        self.root = os.path.commonpath([here if folder.endswith(".txt") else folder for folder in self._folders])
        self.counts.keep()

    def _read(self) -> dict[str, Any]:
        if not self._file.is_file():
            raise self._wrong("there is no such file, or no data.yaml in the folder", "check the path")
        try:
            facts = yaml.safe_load(self._file.read_text("utf-8-sig"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self._wrong(f"it is not valid YAML ({' '.join(str(error).split())[:200]})", "repair it") from error
        if not isinstance(facts, dict):
            raise self._wrong("it should hold train, val and names", "give the data.yaml of a YOLO data set")
        return facts

    def _class_names(self, names: Any) -> dict[int, str]:
        """Return the name of each class by its number; `names` may be a list or a mapping."""
        pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
        found = {int(number): str(name) for number, name in pairs if str(number).lstrip("-").isdecimal()}
        if not found or not all(map(name_as_words, found.values())):
            raise self._wrong(
                "its names should be a list of the classes, or a mapping from their numbers", "correct it"
            )
        return {number: name_as_words(name) for number, name in found.items()}

    def _folder(self, entry: str, path: str) -> str | None:
        """Return the folder or the list of images that an entry names. Tools write it relative to `path`, to the file,
        or to a folder beside it; None if there is nothing in any of these places."""
        here = self._file.parent
        below = entry.replace("\\", "/")
        while below.startswith(("../", "./")):
            below = below.partition("/")[2]
        for place in (here / path / entry, here / entry, here / below, here / Path(path).name / entry):
            if place.exists():
                return str(place.resolve())
        return None

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for folder in self._folders:
            listed = Path(folder).suffix == ".txt"
            for image in self._of_list(Path(folder)) if listed else self._of_folder(folder):
                source = os.path.relpath(image, self.root)
                problem = "the image lies outside the data set" if source.startswith("..") else ""
                annotations = [] if problem else self._annotations(image)
                yield Planned(stem(source), source, annotations=annotations, problem=problem)

    def _of_folder(self, folder: str) -> Iterator[str]:
        source = FolderSource(folder)
        for planned in source:
            yield f"{folder}/{planned.source}"
        self.counts.add(source.counts)

    def _of_list(self, path: Path) -> Iterator[str]:
        """Yield the images of a text file, one path a line, relative to it."""
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except ValueError as error:
            raise UserError("annotations", path, f"it is not valid UTF-8 ({error})", "save it as UTF-8") from error
        for line in lines:
            if line.strip():
                yield os.path.normpath(path.parent / line.strip())

    def _annotations(self, image: str) -> list[dict[str, Any]]:
        before, images, name = image.rpartition("/images/")
        labels = Path(stem(f"{before}/labels/{name}" if images else image) + ".txt")
        if not labels.is_file():
            self.counts.note("images without a label file, which count as empty", image)
            return []
        annotations = []
        for number, line in enumerate(labels.read_text("utf-8-sig", "replace").splitlines(), 1):
            if not line.strip():
                continue
            where = f"{os.path.relpath(labels, self._file.parent)}:{number}"
            try:
                annotations.append(self._annotation(line.split()) | {"id": where})
            except ValueError as error:
                self.counts.note(f"annotations left out, because {error}", where)
        return annotations

    def _annotation(self, parts: list[str]) -> dict[str, Any]:
        """Return the annotation of a line, in fractions of the image; a ValueError says why there is none."""
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            raise ValueError("they are not numbers") from None
        if not all(map(math.isfinite, numbers)):
            raise ValueError("they are not finite numbers")
        label = self._names.get(int(numbers[0])) if numbers[0].is_integer() else None
        if label is None:
            raise ValueError("their class is not in names")
        annotation: dict[str, Any] = {"label": label, "box": None, "segmentation": None, "crowd": False}
        annotation |= {"width": None, "height": None, "fractions": True}
        if len(numbers) in (5, 6):
            x, y, width, height = numbers[1:5]
            if min(width, height) < 0:
                raise ValueError("the width or height of their box is negative")
            return annotation | {"box": [x - width / 2, y - height / 2, width, height], "score": [*numbers, None][5]}
        if len(numbers) >= 7 and len(numbers) % 2:
            return annotation | {"segmentation": [numbers[1:]]}
        raise ValueError("they are neither a box (4 numbers) nor a polygon (3 or more pairs)")

    def _wrong(self, rule: str, remedy: str) -> UserError:
        return UserError("annotations", self._file, rule, remedy)


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
