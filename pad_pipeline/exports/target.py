"""The folder that an export writes: new, empty, or of an earlier export, which is then replaced file by file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_pipeline.errors import UserError

MARK = ".pad-export"


class Target:
    """A folder to export into.

    Args:
        out: the folder.
        kind: of export; an earlier one of another kind is not written over.

    Raises:
        UserError: something else is in it, or it can't be written.
    """

    def __init__(self, out: Path, kind: str) -> None:
        self.path = out
        mark = out / MARK
        try:
            earlier = mark.read_text("utf-8").strip() if mark.is_file() else ""
            if (out.exists() and not out.is_dir()) or (not earlier and out.is_dir() and any(out.iterdir())):
                raise UserError("out", out, "something else is there already", "name a new or an empty folder")
            if earlier not in ("", kind):
                raise UserError("out", out, f"it holds an export of another kind ({earlier})", "name a new folder")
            out.mkdir(parents=True, exist_ok=True)
            mark.write_text(f"{kind}\n", "utf-8")
        except OSError as error:
            raise UserError("out", out, f"it can't be written ({error.strerror})", "choose another folder") from error

    def path_of(self, name: str) -> Path:
        """Where file `name` stands.

        Raises:
            UserError: that is not below the folder. Names come from shards of unknown origin, and a link in the folder
                leads anywhere.
        """
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            rule = "it does not lie in the folder of the export"
            raise UserError("out", path, rule, "name a new folder; see whether `pad verify` finds the shards whole")
        return path

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write to; where the block ends well, it becomes file `name`: whole, or not there."""
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)  # of an export that was killed; never written into, for it may be a link
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

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
