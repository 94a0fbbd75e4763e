"""A folder of images, with all its subfolders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pad_pipeline.sources import Planned, require_folder

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
    """Every image below a folder, sorted by path. Hidden files and folders are left out."""

    def __init__(self, root: Path) -> None:
        self.origin = self.root = require_folder("--images", root)
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Planned]:
        """The images in order of their paths."""
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if Path(name).suffix.lower() not in IMAGE_ENDINGS:
                    self.counts["files that are no images"] += 1
                    continue
                source = Path(folder, name).relative_to(self.root).as_posix()
                readable = os.fsencode(source).decode("utf-8", "backslashreplace")
                problem = "" if readable == source else "the file name is not valid UTF-8; rename the file"
                yield Planned(id=readable.removesuffix(Path(name).suffix), source=readable, problem=problem)
