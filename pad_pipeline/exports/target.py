"""Writes the files of an export into a folder: a new or empty one, or one with an earlier export of the same kind."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pycocotools import mask as coco_mask

from pad_pipeline.choices import Shapes
from pad_pipeline.errors import UserError
from pad_pipeline.records import RegionJson
from pad_pipeline.storage import Folder, atomic_write, claim_folder

MARK = ".pad-export"
"""The file in the folder that states the kind of the export."""


def drawable(region: RegionJson, shapes: Shapes) -> Shapes:
    """Return the shape of a region that has been checked: its box if its mask is empty, because no tool shows that."""
    return shapes if coco_mask.area(region["rle"]) else "boxes"


class Target:
    """A folder to export into. It is created if it does not exist. Raise `UserError` if it holds an export of another
    `kind` or other files, or can't be written."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        mark = path / MARK
        if mark.is_file() and (earlier := mark.read_text("utf-8").strip()) != kind:
            raise UserError("out", path, f"it holds an export of another kind ({earlier})", "name another `out`")
        claim_folder(path, MARK, f"{kind}\n")
        for folder, _, _ in os.walk(path):  # remove temporary files of an export that was killed
            Folder(Path(folder)).clean()

    def path_of(self, name: str) -> Path:
        """Return the path of file `name`; raise `UserError` if it is outside the folder.

        Names come from shards of unknown origin, and a link in the folder can lead anywhere.
        """
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            remedy = "name another `out`; check the shards with `pad verify`"
            raise UserError("out", path, "it does not lie in the folder of the export", remedy)
        return path

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Yield a temporary path to write to, which becomes file `name` if the block ends without an exception."""
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as partial:
            yield partial

    def remove(self, *patterns: str, but: Collection[str] = ()) -> None:
        """Remove files of an earlier export from the folder by patterns of names, except for the names in `but`."""
        for pattern in patterns:
            for path in self.path.glob(pattern):
                if path.name not in but and not path.is_dir():
                    path.unlink()

    def write(self, name: str, content: bytes) -> None:
        """Write a file. A file that already has this content is not written, so that a second export is fast."""
        path = self.path_of(name)
        if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
            with self.file(name) as partial:
                partial.write_bytes(content)
