"""A folder of images, with all its subfolders; on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.records import NOWHERE, Place, Planned
from pad_pipeline.sources.base import Source, Tally, image_store, require_folder, walk_store

IMAGE_ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ico", ".mpo",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif",
}  # fmt: skip
"""Files with these endings (any case) are images; others are counted and left out."""


class FolderSource:
    """Every image below a folder, sorted by path: those of a folder first, then those of its subfolders. Hidden files
    and folders are left out. Memory holds the names of one folder at a time, because they must be sorted."""

    def __init__(self, images: Path | str) -> None:
        self.origin = self.root = require_folder(images)
        self.counts = Tally()

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for folder, files in self.walk():
            for name in sorted(files):
                if not name or name.startswith("."):
                    continue
                if os.path.splitext(name)[1].lower() not in IMAGE_ENDINGS:  # noqa: PTH122 (slow in a Path)
                    self.counts.note("files that are no images", f"{folder}/{name}".lstrip("/"))
                    continue
                source = f"{folder}/{name}" if folder else name
                readable = os.fsencode(source).decode("utf-8", "backslashreplace")
                problem = "" if readable == source else "the file name is not valid UTF-8; rename the file"
                size = files[name]
                place = NOWHERE if size is None else Place("", size=size)
                yield Planned(os.path.splitext(readable)[0], readable, place=place, problem=problem)  # noqa: PTH122

    def walk(self) -> Iterator[tuple[str, Mapping[str, int | None]]]:
        """Yield the path of each folder relative to the root, and its files with the sizes that the listing gives."""
        for folder, folders, files in os.walk(self.root, onerror=self._unlistable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if links := sum(os.path.islink(f"{folder}/{name}") for name in folders):  # noqa: PTH114 (slow in a Path)
                self.counts["links to folders, which are not followed"] += links
            yield folder[len(self.root) :].strip("/"), dict.fromkeys(files)

    def _unlistable(self, error: OSError) -> None:
        remedy = "make it readable, or move it away: the images of a folder that is skipped would be missing"
        raise UserError("images", error.filename, f"it can't be listed ({error.strerror})", remedy) from error


class MetadataSource:
    """The images of a folder that a metadata file in it lists. The other images of the folder are counted.

    Args:
        folder: the folder.
        listed: the source that reads the metadata file.
    """

    def __init__(self, folder: str, listed: Source) -> None:
        self.folder, self.listed = folder, listed
        self.origin, self.root, self.counts = folder, listed.root, listed.counts

    def __iter__(self) -> Iterator[Planned]:
        images = 0
        for planned in self.listed:
            images += 1
            yield planned
        if (others := sum(1 for _ in FolderSource(self.folder)) - images) > 0:
            self.counts["images that the metadata file does not list, which are left out"] = others


class RemoteFolderSource(FolderSource):
    """Every image below a prefix in an object store, in the order of a local folder. The listing gives the sizes."""

    def walk(self) -> Iterator[tuple[str, Mapping[str, int | None]]]:
        """See `FolderSource`."""
        store, prefix = image_store(self.root)
        for folder, files in walk_store(store, prefix):
            yield folder[len(prefix) :].strip("/"), files
