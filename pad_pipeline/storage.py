"""A run's folder, on a disk or in an object store: the same few operations, and files that are whole or not there."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.packages import OPTIONAL, installed, without

ATTEMPT = secrets.token_hex(6)
"""Names this process's unfinished files, so that a dying process and the one that follows it never share one."""
_LEFTOVER = re.compile(
    r"\.(pad-[0-9]{6,}\.(tar|parquet)|plan\.parquet|run\.json|metrics\.jsonl|\.attempt\.json)\.[0-9a-f]{12}\.partial"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
REMOTE_SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss"})
"""What a URL may begin with. Nothing that reads this machine's own files, and no chains (`zip::file://...`)."""
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""What a URL begins with -> the package that fsspec wants for it."""


def is_url(text: str) -> bool:
    """Whether `text` names something by URL, of whatever scheme."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and (scheme in REMOTE_SCHEMES or _URL.match(text) is not None)


def url_problem(url: str) -> str:
    """Why pad does not open this URL; empty where it does."""
    scheme = url.partition("://")[0]
    if scheme in REMOTE_SCHEMES:
        return ""
    return f"the URL begins with {scheme!r}; pad reads {', '.join(sorted(REMOTE_SCHEMES))}"


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        UserError: the scheme is none of ours, or the package for it is not installed.
    """
    import fsspec

    if problem := url_problem(url):
        raise UserError("url", url, problem, "copy the files to one of these, or to a local folder")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        name = PACKAGES.get(url.partition("://")[0], "")
        if name and not installed(name):
            raise UserError("url", url, without(name), OPTIONAL[name].install) from error
        raise UserError("url", url, str(error), "install that package beside pad") from error
    except ValueError as error:
        raise UserError("url", url, f"it is no URL of that kind ({error})", "correct it") from error


class Folder:
    """A folder on a disk. Its files appear under their names whole, or not at all."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether anything is there under the folder's own name."""
        return self.path.exists()

    def create(self) -> None:
        """Make the folder, and those above it."""
        self.path.mkdir(parents=True, exist_ok=True)

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of everything directly inside, in no order; a folder's size is 0."""
        if not self.path.is_dir():
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    yield entry.name, 0 if entry.is_dir() else entry.stat().st_size
                except FileNotFoundError:  # gone since it was listed
                    continue

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        """Of a file, in bytes."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self.open(name) as stream:
            return stream.read()

    def part(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to before `stop`; fewer where it ends before."""
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def open(self, name: str) -> BinaryIO:
        """A file to read from, at any place."""
        path = self.path / name
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        return path.open("rb")

    @contextmanager
    def commit(self, name: str, durable: bool = True) -> Iterator[Path]:
        """A local path to write to; when the block ends well, its content is made durable and becomes file `name`."""
        partial = self.path / f".{name}.{ATTEMPT}.partial"
        try:
            yield partial
            if durable:
                _sync(partial)
            partial.replace(self.path / name)
            if durable:
                _sync(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, name: str, durable: bool = True) -> None:
        """Remove a file; nothing happens where there is none."""
        try:
            (self.path / name).unlink()
        except FileNotFoundError:
            return
        if durable:
            _sync(self.path)

    def clean(self) -> int:
        """Remove what dead processes left unfinished: only names that nothing but `commit` makes. How many."""
        leftovers = [name for name, _ in self.files() if _LEFTOVER.fullmatch(name)]
        for name in leftovers:
            (self.path / name).unlink(missing_ok=True)
        return len(leftovers)


class RemoteFolder(Folder):
    """A prefix in an object store, through fsspec. An upload is atomic there: an object is whole or absent."""

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.file_system, self.prefix = file_system(self.url)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:  # connections don't travel between processes
        return RemoteFolder, (self.url,)

    def _at(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def exists(self) -> bool:
        """Whether there is anything below the prefix."""
        with _as_os_error(self.url):
            self.file_system.invalidate_cache()
            return bool(self.file_system.exists(self.prefix))

    def create(self) -> None:
        """Nothing: a prefix is there when something lies below it."""

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and size of everything directly below the prefix."""
        with _as_os_error(self.url):
            try:
                entries = self.file_system.ls(self.prefix, detail=True, refresh=True)
            except FileNotFoundError:
                return
        for entry in entries:
            if entry["name"].rstrip("/") != self.prefix:
                yield entry["name"].rstrip("/").rpartition("/")[2], entry["size"] or 0

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        with _as_os_error(self.url):
            self.file_system.invalidate_cache()
            return bool(self.file_system.isfile(self._at(name)))

    def size(self, name: str) -> int:
        """Of an object, in bytes."""
        with _as_os_error(self.url):
            return int(self.file_system.size(self._at(name)))

    def read(self, name: str) -> bytes:
        """A whole object."""
        with _as_os_error(self.url):
            return bytes(self.file_system.cat_file(self._at(name)))

    def part(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of an object from `start` to before `stop`, in one request."""
        with _as_os_error(self.url):
            return bytes(self.file_system.cat_file(self._at(name), start=start, end=stop))

    def open(self, name: str) -> BinaryIO:
        """An object to read from, at any place."""
        with _as_os_error(self.url):
            return self.file_system.open(self._at(name), "rb")

    @contextmanager
    def commit(self, name: str, durable: bool = True) -> Iterator[Path]:
        """A local path to write to; when the block ends well, it is uploaded."""
        with tempfile.TemporaryDirectory(prefix="pad-") as folder:
            partial = Path(folder, name)
            yield partial
            with _as_os_error(self.url):
                self.file_system.put_file(str(partial), self._at(name))

    def delete(self, name: str, durable: bool = True) -> None:
        """Remove an object."""
        with _as_os_error(self.url):
            try:
                self.file_system.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def clean(self) -> int:
        """Nothing: uploads that died left no object."""
        return 0


def folder_at(shards: str | Path | Folder) -> Folder:
    """Return the folder of shards that a user names: a path, or a URL of an object store.

    Raises:
        UserError: it is a URL that can't be used.
    """
    if isinstance(shards, Folder):
        return shards
    if isinstance(shards, str) and is_url(shards):
        with rename_field(url="shards"):
            return RemoteFolder(shards)
    return Folder(Path(shards))


@contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """The stores' own exceptions, a dozen kinds, as what a disk raises; so that one rule fits both."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
