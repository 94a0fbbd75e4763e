"""A folder of images, with all its subfolders; on a disk or in an object store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources.base import image_store, require_folder

IMAGE_ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".ico",
        ".mpo",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".jp2",
        ".avif",
    ]
)
"""Files with these endings (any case) are images; others are counted and left alone."""


class FolderSource:
    """Every image below a folder, sorted by path. Hidden files and folders are left out. Memory holds the names of one
    folder at a time, for they must be sorted."""

    def __init__(self, images: Path) -> None:
        self.origin = self.root = require_folder(images)
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Planned]:
        """The images: those of a folder first, then those of its subfolders."""
        for folder, folders, files in os.walk(self.root, onerror=self._unlistable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if links := sum(os.path.islink(f"{folder}/{name}") for name in folders):  # noqa: PTH114 (slow in a Path)
                self.counts["links to folders, which are not followed"] += links
            below = folder[len(self.root) :].strip("/")
            for name in sorted(files):
                if _is_image(name, self.counts):
                    yield _planned(f"{below}/{name}" if below else name)

    def _unlistable(self, error: OSError) -> None:
        remedy = "let it be read, or move it away: a folder that is left out in silence would be missed in the shards"
        raise UserError("images", error.filename, f"it can't be listed ({error.strerror})", remedy) from error


class RemoteFolderSource:
    """The same for a prefix in an object store, whose listing tells the sizes too."""

    def __init__(self, images: str) -> None:
        self.origin = self.root = require_folder(images)
        self.counts: Counter[str] = Counter()
        self._store, self._prefix = image_store(self.root)

    def __iter__(self) -> Iterator[Planned]:
        """The images, in the order of a local folder."""
        for folder, folders, files in self._walk():
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            for name in sorted(folders):  # walk goes on in the order that it finds here
                folders[name] = folders.pop(name)
            below = folder[len(self._prefix) :].strip("/")
            for name in sorted(files):
                if name and _is_image(name, self.counts):
                    planned = _planned(f"{below}/{name}" if below else name)
                    if (size := files[name].get("size")) is not None:
                        planned.place = Place("", size=size)
                    yield planned

    def _walk(self) -> Iterator[Any]:
        try:
            yield from self._store.walk(self._prefix, detail=True, on_error="raise")
        except Exception as error:  # whatever the network and the store's library come up with
            rule = f"it can't be listed ({type(error).__name__}: {error})"
            raise UserError("images", self.root, rule, "check the URL, and try again") from error


def _is_image(name: str, counts: Counter[str]) -> bool:
    if name.startswith("."):
        return False
    found = os.path.splitext(name)[1].lower() in IMAGE_ENDINGS  # noqa: PTH122 (a Path for each of millions is slow)
    if not found:
        counts["files that are no images"] += 1
    return found


def _planned(source: str) -> Planned:
    readable = os.fsencode(source).decode("utf-8", "backslashreplace")
    problem = "" if readable == source else "the file name is not valid UTF-8; rename the file"
    return Planned(id=os.path.splitext(readable)[0], source=readable, problem=problem)  # noqa: PTH122
