"""The folder that an export writes: new, empty, or of an earlier export, which is then replaced file by file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder, claim_folder, whole

MARK = ".pad-export"


class Target:
    """A folder to export into.

    Args:
        path: of it.
        kind: of export; an earlier one of another kind is not written over.

    Raises:
        UserError: something else is in it, or it can't be written.
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
        """Where file `name` stands.

        Raises:
            UserError: that is not below the folder. Names come from shards of unknown origin, and a link in the folder
                leads anywhere.
        """
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            rule = "it does not lie in the folder of the export"
            raise UserError("out", path, rule, "name another `out`; see whether `pad verify` finds the shards whole")
        return path

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write to; where the block ends well, it becomes file `name`: whole, or not there."""
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, durable=False) as partial:
            yield partial

    def remove(self, *patterns: str, but: Collection[str] = ()) -> None:
        """Remove the files directly inside whose names match, but for some: what an earlier export wrote and this one
        does not."""
        for pattern in patterns:
            for path in self.path.glob(pattern):
                if path.name not in but and not path.is_dir():
                    path.unlink()

    def write(self, name: str, content: bytes) -> None:
        """A whole file; left as it is where it has that many bytes already, so that a second export is quick."""
        path = self.path_of(name)
        if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
            with self.file(name) as partial:
                partial.write_bytes(content)
