"""Folders on a disk or in an object store, with the same operations. A file in them is there whole, or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.packages import OPTIONAL, installed, not_installed

PROCESS_TOKEN = secrets.token_hex(6)
"""A part of the names of this process's unfinished files, so that no two processes write to the same one."""
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
REMOTE_SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss"})
"""The schemes of URLs that pad opens: none that reads this machine's own files, and no chains (`zip::file://...`)."""
PACKAGES = (
    dict.fromkeys(("s3", "s3a"), "s3fs")
    | dict.fromkeys(("gs", "gcs"), "gcsfs")
    | dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
)
"""Scheme of a URL -> the package that fsspec needs for it."""


def is_url(text: str) -> bool:
    """Return whether `text` is a URL, of any scheme."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and (scheme in REMOTE_SCHEMES or _URL.match(text) is not None)


def url_problem(url: str) -> str:
    """Return why pad does not open this URL; empty if it does."""
    scheme = url.partition("://")[0]
    if scheme in REMOTE_SCHEMES:
        return ""
    return f"the URL begins with {scheme!r}; pad reads {', '.join(sorted(REMOTE_SCHEMES))}"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        UserError: pad does not open URLs of this scheme, or the package for it is not installed.
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
            raise UserError("url", url, not_installed(name), OPTIONAL[name].install) from error
        raise UserError("url", url, str(error), "install that package beside pad") from error
    except ValueError as error:
        raise UserError("url", url, f"it is no URL of that kind ({error})", "correct it") from error


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Write a file or a folder so that it is there whole, or not at all, even if the process is killed.

    Args:
        path: the file or folder to write; an existing one is replaced.
        durable: whether to wait until the disk has stored it, so that it survives a power failure.

    Yields:
        A free path beside `path`, for the block to write to. After the block, it is renamed to `path`; if the block
        raises, it is removed and `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{PROCESS_TOKEN}.partial")
    try:
        _remove(partial)  # it might be a link, which must not be written through
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


def atomic_write_text(path: Path, text: str) -> None:
    """Write a small text file that is there whole, or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, "utf-8")


def claim_folder(
    out: str | Path | Folder, mark: str = "", text: str | None = None, field: str = "out", hidden: bool = True
) -> None:
    """Refuse an output folder that is in use for something else. It must be new, empty or one of this command;
    unfinished files of a dead process are ignored.

    Args:
        out: the folder, or its URL.
        mark: the file that only the folders of this command have; empty if the folder must be new or empty.
        text: the text to write into `mark`, for which the folder is made; None to write nothing.
        field: the caller's parameter for the folder, for errors.
        hidden: whether files whose names begin with a dot count as use.

    Raises:
        UserError: the folder is in use, or can't be written.
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
        raise write_error(folder, error, field) from error


def write_error(out: str | Path | Folder, error: Exception, field: str = "out") -> UserError:
    """Return the UserError of parameter `field` for an output folder that is full, read-only or gone.

    The given `error` is that of the library that writes, usually an OSError.
    """
    name = getattr(error, "filename", None)
    at = f" at {name}" if name and str(name) != str(out) else ""
    rule = f"it can't be written ({getattr(error, 'strerror', None) or error}){at}"
    remedy = f"make room, repair it or name another `{field}`, then run the same command again"
    return UserError(field, out, rule, remedy)


class Folder:
    """A folder on a disk. A new file in it appears under its name whole, or not at all."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Return whether there is anything under the folder's path."""
        return self.path.exists()

    def create(self) -> None:
        """Make the folder and its parents."""
        self.path.mkdir(parents=True, exist_ok=True)

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of every direct entry, in no order; a subfolder has size 0."""
        if not self.path.is_dir():
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it may be gone since it was listed
                    yield entry.name, 0 if entry.is_dir() else entry.stat().st_size

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.open(name) as stream:
            return stream.read()

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of a file from `start` to before `stop`; fewer if the file ends before."""
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def open(self, name: str) -> BinaryIO:
        """Open a file to read at any position."""
        return self._ordinary(name).open("rb")

    def _ordinary(self, name: str) -> Path:
        path = self.path / name
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        return path

    @contextmanager
    def commit(self, name: str, durable: bool = True) -> Iterator[Path]:
        """Yield a local path to write to. After the block, its content becomes the file `name`."""
        with atomic_write(self.path / name, durable) as partial:
            yield partial

    def append(self, name: str, data: bytes) -> None:
        """Add all of `data` or nothing to the end of a file, which is made if needed. The result is not durable."""
        with self._ordinary(name).open("ab", buffering=0) as stream:
            end = stream.tell()
            if stream.write(data) < len(data):  # the disk is full
                stream.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / name))

    def delete(self, name: str) -> None:
        """Remove a file, if there is one."""
        with suppress(FileNotFoundError):
            (self.path / name).unlink()
            _sync(self.path)

    def clean(self, name: str = "") -> None:
        """Remove unfinished files of dead processes, those of file `name` or all. Only names that `whole` makes."""
        for entry, _ in self.files():
            if (left := _LEFTOVER.fullmatch(entry)) and name in ("", left[1]):
                _remove(self.path / entry)


class RemoteFolder(Folder):
    """A prefix in an object store, through fsspec. An upload is atomic: an object is there whole, or not at all."""

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.file_system, self.prefix = file_system(self.url)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:  # connections can't be pickled
        return RemoteFolder, (self.url,)

    def _at(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system. Errors of the store, of a dozen kinds, become an OSError as of a disk."""
        try:
            return operation(*arguments, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self.url) from error

    def exists(self) -> bool:
        """Return whether there is anything below the prefix."""
        self.file_system.invalidate_cache()
        return bool(self._call(self.file_system.exists, self.prefix))

    def create(self) -> None:
        """Do nothing: a prefix exists as soon as an object lies below it."""

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of everything directly below the prefix."""
        try:
            entries = self._call(self.file_system.ls, self.prefix, detail=True, refresh=True)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry["name"].rstrip("/") != self.prefix:
                yield entry["name"].rstrip("/").rpartition("/")[2], entry["size"] or 0

    def has(self, name: str) -> bool:
        """Return whether there is such an object."""
        self.file_system.invalidate_cache()
        return bool(self._call(self.file_system.isfile, self._at(name)))

    def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return int(self._call(self.file_system.size, self._at(name)))

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return bytes(self._call(self.file_system.cat_file, self._at(name)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of an object from `start` to before `stop`, with one request."""
        return bytes(self._call(self.file_system.cat_file, self._at(name), start=start, end=stop))

    def open(self, name: str) -> BinaryIO:
        """Open an object to read at any position."""
        return cast(BinaryIO, self._call(self.file_system.open, self._at(name), "rb"))

    @contextmanager
    def commit(self, name: str, durable: bool = True) -> Iterator[Path]:
        """Yield a local path to write to. After the block, the file is uploaded."""
        with tempfile.TemporaryDirectory(prefix="pad-") as folder:
            partial = Path(folder, name)
            yield partial
            self._call(self.file_system.put_file, str(partial), self._at(name))

    def append(self, name: str, data: bytes) -> None:
        """Read the object, and replace it by one with `data` at its end."""
        before = self.read(name) if self.has(name) else b""
        with self.commit(name) as partial:
            partial.write_bytes(before + data)

    def delete(self, name: str) -> None:
        """Remove an object, if there is one."""
        with suppress(FileNotFoundError):
            self._call(self.file_system.rm_file, self._at(name))

    def clean(self, name: str = "") -> None:
        """Do nothing: unfinished uploads leave no object."""


def resolved(where: str | Path | Folder) -> str:
    """Return the absolute path of a folder or file, or its URL without a closing slash."""
    text = str(where)
    return text.rstrip("/") if is_url(text) else str(Path(text).resolve())


def folder_at(shards: str | Path | Folder) -> Folder:
    """Return the folder at a path or at a URL of an object store.

    Raises:
        UserError: it is a URL that pad does not open.
    """
    if isinstance(shards, Folder):
        return shards
    if isinstance(shards, str) and is_url(shards):
        with rename_field(url="shards"):
            return RemoteFolder(shards)
    return Folder(Path(shards))


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
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
