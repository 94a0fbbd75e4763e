"""The folder of an export: new, empty, or with an earlier export of the same kind, whose files are replaced."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder, atomic_write, claim_folder

MARK = ".pad-export"
"""A file in the folder that holds the kind of the export."""


class Target:
    """A folder to export into, which is created where it does not exist.

    Raises:
        UserError: the folder holds an export of another `kind`, or something else, or can't be written.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        mark = path / MARK
        if mark.is_file() and (earlier := mark.read_text("utf-8").strip()) != kind:
            raise UserError("out", path, f"it holds an export of another kind ({earlier})", "name another `out`")
        claim_folder(path, MARK, f"{kind}\n")
        for folder, _, _ in os.walk(path):  # of an export that was killed
            Folder(Path(folder)).clean()

    def path_of(self, name: str) -> Path:
        """Return the path of file `name` in the folder; raise `UserError` if the path is not below the folder.

        Names come from shards of unknown origin, and a link in the folder may lead anywhere, so the path is checked.
        """
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            rule = "it does not lie in the folder of the export"
            raise UserError("out", path, rule, "name another `out`; see whether `pad verify` finds the shards whole")
        return path

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Yield a temporary path to write to, which becomes file `name` if the block ends without an exception."""
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as partial:
            yield partial

    def remove(self, *patterns: str, but: Collection[str] = ()) -> None:
        """Remove files of an earlier export: those directly in the folder whose names match, except those in `but`."""
        for pattern in patterns:
            for path in self.path.glob(pattern):
                if path.name not in but and not path.is_dir():
                    path.unlink()

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, unless it has this content already, which makes a second export quick."""
        path = self.path_of(name)
        if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
            with self.file(name) as partial:
                partial.write_bytes(content)
