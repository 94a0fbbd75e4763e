"""A run's folder, on a disk or in an object store: the same few operations, and files that are whole or not there."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.packages import OPTIONAL, installed, without

ATTEMPT = secrets.token_hex(6)
"""Names this process's unfinished files, so that a dying process and the one that follows it never share one."""
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)
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
        store, path = fsspec.core.url_to_fs(url)
        return store, str(path)
    except ImportError as error:
        name = PACKAGES.get(url.partition("://")[0], "")
        if name and not installed(name):
            raise UserError("url", url, without(name), OPTIONAL[name].install) from error
        raise UserError("url", url, str(error), "install that package beside pad") from error
    except ValueError as error:
        raise UserError("url", url, f"it is no URL of that kind ({error})", "correct it") from error


@contextmanager
def whole(path: Path, durable: bool = True) -> Iterator[Path]:
    """Write a file or a folder so that it is there whole, or not at all, even where the process is killed.

    Args:
        path: of the file or folder; what is there already is replaced.
        durable: whether to wait until the disk has it, so that it outlives a power cut.

    Yields:
        A free path beside `path`, for the block to write to. When the block ends well, it is renamed to `path`; when
        the block raises, it is removed and `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{ATTEMPT}.partial")
    try:
        _remove(partial)  # never written into: it may be a link
        yield partial
        if durable:
            for part in partial.iterdir() if partial.is_dir() else ():
                _sync(part)
            _sync(partial)
        if partial.is_dir():  # a folder is not renamed over another one with files in it
            _remove(path)
        partial.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        _remove(partial)


def write_whole(path: Path, text: str) -> None:
    """Write a small file that is there whole, or not at all."""
    with whole(path) as partial:
        partial.write_text(text, "utf-8")


def claim_folder(
    out: str | Path | Folder, mark: str = "", text: str | None = None, field: str = "out", hidden: bool = True
) -> None:
    """Refuse an output folder that is in use for something else: neither new, nor empty, nor this command's own.

    What a dead process left unfinished counts as nothing.

    Args:
        out: the folder, or its URL.
        mark: the file that only a folder of this command has in it; empty where not even such a one may be used.
        text: what to write into `mark`; the folder is made then. None to write nothing.
        field: what the user calls the folder, for errors.
        hidden: whether files whose names begin with a dot count as something.

    Raises:
        UserError: it is in use, or can't be written.
    """
    with rename_field(shards=field):
        folder = folder_at(out)
    remedy = f"name another `{field}`"
    try:
        if not folder.remote and folder.exists() and not folder.path.is_dir():
            raise UserError(field, folder, "this is a file", remedy)
        names = (name for name, _ in folder.files() if not _LEFTOVER.fullmatch(name))
        counted = (name for name in names if hidden or not name.startswith(".") or name == ".git")
        if not (mark and folder.has(mark)) and (others := sorted(islice(counted, 5))):
            rule = f"it holds something else ({others[0]})" + (f" and no {mark}" if mark else "")
            raise UserError(field, folder, rule, remedy)
        if text is not None:
            folder.create()
            with folder.commit(mark) as partial:
                partial.write_text(text, "utf-8")
    except OSError as error:
        raise unwritable(folder, error, field) from error


def unwritable(out: str | Path | Folder, error: Exception, field: str = "out") -> UserError:
    """Return the error for an output folder that is full, read-only or gone.

    Args:
        out: the folder.
        error: what the library that writes raised, most often an OSError.
        field: what the user calls the folder.
    """
    name = getattr(error, "filename", None)
    at = f" at {name}" if name and str(name) != str(out) else ""
    rule = f"it can't be written ({getattr(error, 'strerror', None) or error}){at}"
    remedy = f"make room, repair it or name another `{field}`, then run the same command again"
    return UserError(field, out, rule, remedy)


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
        with whole(self.path / name, durable) as partial:
            yield partial

    def append(self, name: str, data: bytes) -> None:
        """Add `data` to the end of a file, which is made if need be; all of it or nothing, and not durable."""
        path = self.path / name
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        with path.open("ab", buffering=0) as stream:
            end = stream.tell()
            if stream.write(data) < len(data):  # the disk is full
                stream.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def delete(self, name: str, durable: bool = True) -> None:
        """Remove a file; nothing happens where there is none."""
        try:
            (self.path / name).unlink()
        except FileNotFoundError:
            return
        if durable:
            _sync(self.path)

    def clean(self, name: str = "") -> None:
        """Remove what dead processes left unfinished, of file `name` or of all: only names that only `whole` makes."""
        for entry, _ in self.files():
            if (left := _LEFTOVER.fullmatch(entry)) and name in ("", left[1]):
                _remove(self.path / entry)


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
            stream: BinaryIO = self.file_system.open(self._at(name), "rb")
            return stream

    @contextmanager
    def commit(self, name: str, durable: bool = True) -> Iterator[Path]:
        """A local path to write to; when the block ends well, it is uploaded."""
        with tempfile.TemporaryDirectory(prefix="pad-") as folder:
            partial = Path(folder, name)
            yield partial
            with _as_os_error(self.url):
                self.file_system.put_file(str(partial), self._at(name))

    def append(self, name: str, data: bytes) -> None:
        """Put an object in place of the old one, with `data` at its end: the old one is read for it."""
        before = self.read(name) if self.has(name) else b""
        with self.commit(name, durable=False) as partial:
            partial.write_bytes(before + data)

    def delete(self, name: str, durable: bool = True) -> None:
        """Remove an object."""
        with _as_os_error(self.url):
            try:
                self.file_system.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def clean(self, name: str = "") -> None:
        """Nothing: uploads that died left no object."""


def resolved(where: str | Path | Folder) -> str:
    """Return what a folder or file is called from anywhere: its absolute path, or its URL without a closing slash."""
    text = str(where)
    return text.rstrip("/") if is_url(text) else str(Path(text).resolve())


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


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; do nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
