"""A folder of images, with all its subfolders; on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.records import NOWHERE, Place, Planned
from pad_pipeline.sources.base import Listed, Source, Tally, image_store, in_order, require_folder, walk_store

IMAGE_ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ico", ".mpo",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif",
}  # fmt: skip
"""Files with these endings (any case) are images; others are counted and left out."""


class FolderSource:
    """Every image below a folder, sorted by path: those of a folder first, then those of its subfolders. Hidden files
    and folders are left out. For the memory see `in_order`."""

    def __init__(self, images: Path | str) -> None:
        self.origin = self.root = require_folder(images)
        self.counts = Tally()

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for folder, files in self.walk():
            for name, size in files:
                if name.startswith("."):
                    continue
                if os.path.splitext(name)[1].lower() not in IMAGE_ENDINGS:  # noqa: PTH122 (slow in a Path)
                    self.counts.note("files that are no images", f"{folder}/{name}".lstrip("/"))
                    continue
                source = f"{folder}/{name}" if folder else name
                readable = os.fsencode(source).decode("utf-8", "backslashreplace")
                problem = "" if readable == source else "the file name is not valid UTF-8; rename the file"
                place = NOWHERE if size is None else Place("", size=size)
                yield Planned(os.path.splitext(readable)[0], readable, place=place, problem=problem)  # noqa: PTH122

    def walk(self) -> Iterator[tuple[str, Iterator[Listed]]]:
        """Yield the path of each folder relative to the root, and its files in order, with the sizes that the listing
        gives."""
        left = [""]
        while left:
            folder = left.pop()
            folders, files = in_order(self._entries(folder))
            yield folder, files
            left += [f"{folder}/{name}".lstrip("/") for name in reversed(folders)]

    def _entries(self, folder: str) -> Iterator[tuple[str, bool, None]]:
        """Yield the entries of a folder, without hidden folders and links to folders."""
        try:
            with os.scandir(f"{self.root}/{folder}") as entries:
                for entry in entries:
                    is_folder = _is_folder(entry)
                    if is_folder and entry.name.startswith("."):
                        continue
                    if is_folder and entry.is_symlink():
                        self.counts["links to folders, which are not followed"] += 1
                        continue
                    yield entry.name, is_folder, None
        except OSError as error:
            raise self._unlistable(error) from error

    def _unlistable(self, error: OSError) -> UserError:
        remedy = "make it readable, or move it away: the images of a folder that is skipped would be missing"
        return UserError("images", str(error.filename).rstrip("/"), f"it can't be listed ({error.strerror})", remedy)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


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

    def walk(self) -> Iterator[tuple[str, Iterator[Listed]]]:
        """See `FolderSource`."""
        store, prefix = image_store(self.root)
        for folder, files in walk_store(store, prefix):
            yield folder[len(prefix) :].strip("/"), files
