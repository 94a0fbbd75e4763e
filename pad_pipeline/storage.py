"""Read and write folders on a disk or in an object store through one interface. New files appear only once complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from pad_pipeline.addresses import any_client
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.listing import pages
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.retries import REMEDY, StoreError
from pad_pipeline.stores import attempt, open_object, read_part, read_whole, request, write_whole

PROCESS_TOKEN = secrets.token_hex(6)
"""Part of the names of this process's unfinished files, so that no two processes write to the same file."""
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_STORE = re.compile(r"hf://(?:(?:datasets|spaces|buckets)/)?[^/]*/[^/]*|(?!https?:|hf:)\w+://[^/]*")
REMOTE_SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss"})
"""The URL schemes that pad opens. None reads local files, and chains of schemes (`zip::file://...`) are refused."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
PACKAGES |= {"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""The package that fsspec needs for a URL scheme."""


def is_url(text: str) -> bool:
    """Return whether `text` begins with a URL scheme, any one."""
    return _URL.match(text) is not None


def store_of(url: str) -> str:
    """Return the beginning of a URL that names a bucket, or a repository of the hub: everything in it is read with the
    same credentials. It is empty for URLs of the web, which have nothing in common, and for paths."""
    match = _STORE.match(url)
    return match[0] if match else ""


def url_problem(url: str) -> str:
    """Return the reason why pad does not open a URL; empty if pad opens it."""
    scheme = url.partition("://")[0]
    if scheme in REMOTE_SCHEMES:
        return ""
    return f"the URL begins with {scheme!r}; pad reads {', '.join(sorted(REMOTE_SCHEMES))}"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the URL's path in it.

    Raise `UserError` if pad does not open URLs of this scheme, or the scheme's package is not installed.
    """
    import fsspec

    if problem := url_problem(url):
        raise UserError("url", url, problem, "copy the files to one of these, or to a local folder")
    try:
        store, path = fsspec.core.url_to_fs(url, **({"get_client": any_client} if url.startswith("http") else {}))
        return store, str(path)
    except ImportError as error:
        name = PACKAGES.get(url.partition("://")[0], "")
        if name and not installed(name):
            raise UserError("url", url, not_installed(name), OPTIONAL[name].install) from error
        raise UserError("url", url, str(error), "install that package beside pad") from error
    except ValueError as error:
        raise UserError("url", url, f"it is no URL of that kind ({error})", "correct it") from error


@contextmanager
def atomic_write(path: Path, durable: bool = True, first: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` after the block.

    With `first`, a file that is at `path` by then stays, so that the first of several processes decides.

    So the file or folder `path` is complete, or as it was before, even if the block raises or the process is killed.
    With `durable`, wait until the disk has stored it, so that it also survives a power failure.
    """
    partial = path.with_name(f".{path.name}.{PROCESS_TOKEN}.partial")
    try:
        _remove(partial)  # it might be a link, and writing would change its target
        yield partial
        if durable:
            for part in partial.iterdir() if partial.is_dir() else ():
                _sync(part)
            _sync(partial)
        if partial.is_dir():  # a rename can't replace a folder with files in it
            _remove(path)
        if not (first and _linked(partial, path)):
            partial.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        _remove(partial)


def _linked(partial: Path, path: Path) -> bool:
    """Give a file the name `path`, unless there is one; return False where the file system has no hard links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


def atomic_write_text(path: Path, text: str) -> None:
    """Write a small text file with `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text, "utf-8")


def claim_folder(
    out: str | Path | Folder, mark: str = "", text: str | None = None, field: str = "out", hidden: bool = True
) -> None:
    """Check that an output folder is new, empty or from an earlier run of the same command.

    Unfinished files of dead processes do not count as content.

    Args:
        out: the folder, or its URL.
        mark: the file by which the command recognizes its own folders; empty to refuse them, too.
        text: the content to write to the file `mark`, in a new folder if needed; None writes nothing.
        field: the caller's parameter for the folder, for errors.
        hidden: whether files whose names begin with a dot count as content.

    Raises:
        UserError: the folder holds something else, or can't be written.
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
    """Return a `UserError` about an output folder that can't be written because of `error`, usually an OSError.

    `field` is the caller's parameter for the folder.
    """
    name = getattr(error, "filename", None)
    at = f" at {name}" if name and str(name) != str(out) else ""
    if isinstance(error, StoreError):
        return UserError(field, out, f"{error.strerror}{at}", REMEDY)
    rule = f"it can't be written ({getattr(error, 'strerror', None) or error}){at}"
    remedy = f"make room, repair it or name another `{field}`, then run the same command again"
    return UserError(field, out, rule, remedy)


class Folder:
    """A folder on a disk."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Return whether the folder's path exists."""
        return self.path.exists()

    def create(self) -> None:
        """Make the folder and its parents, if needed."""
        self.path.mkdir(parents=True, exist_ok=True)

    def files(self, begin: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of every file whose name starts with `begin`, in no order. Subfolders are
        included, with size 0."""
        if not self.path.is_dir():
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.startswith(begin):
                    continue
                with suppress(FileNotFoundError):  # it may be gone since it was listed
                    yield entry.name, 0 if entry.is_dir() else entry.stat().st_size

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self._ordinary(name).read_bytes()

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop - 1` of a file; fewer if the file is shorter."""
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading at any position."""
        return self._ordinary(name).open("rb")

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """Yield a local path of a file for a `with` block: its own, or that of a copy."""
        yield self._ordinary(name)

    def _ordinary(self, name: str) -> Path:
        path = self.path / name
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        return path

    @contextmanager
    def commit(self, name: str, durable: bool = True, first: bool = False) -> Iterator[Path]:
        """Yield a local path for the block to write the file `name` to, see `atomic_write`."""
        with atomic_write(self.path / name, durable, first) as partial:
            yield partial

    def append(self, name: str, data: bytes) -> None:
        """Append all of `data` or nothing to a file, which is made if needed, without waiting for the disk."""
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

    def clean(self, name: str = "", mine: Callable[[str], bool] = lambda name: True) -> None:
        """Remove what `atomic_write` left unfinished in dead processes, for the file `name` or for all that are
        `mine`."""
        for entry, _ in self.files("."):
            if (left := _LEFTOVER.fullmatch(entry)) and name in ("", left[1]) and mine(left[1]):
                _remove(self.path / entry)


class RemoteFolder(Folder):
    """A prefix in an object store, through fsspec. Uploads are atomic.

    Each question is asked several times, see `ask`. An answer that says neither yes nor no becomes a `StoreError`.
    """

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

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        return request(self.file_system, self.url, lambda: attempt(self.file_system, method, *arguments, **options))

    def _info(self, path: str) -> dict[str, Any] | None:
        """Return what the store knows of a path; None if there is nothing."""
        self.file_system.invalidate_cache()
        try:
            return dict(self._ask("info", path))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Return whether an object exists below the prefix."""
        return self._info(self.prefix) is not None

    def create(self) -> None:
        """Do nothing, because a prefix needs no object of its own."""

    def files(self, begin: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of every object directly below the prefix whose name starts with `begin`."""
        self.file_system.invalidate_cache()
        try:
            for entry in chain.from_iterable(pages(self.file_system, self.prefix, begin, self._ask)):
                name = entry["name"].rstrip("/")
                if name != self.prefix and (short := name.rpartition("/")[2]).startswith(begin):
                    yield short, entry["size"] or 0
        except FileNotFoundError:
            return

    def has(self, name: str) -> bool:
        """Return whether there is an object of this name."""
        info = self._info(self._at(name))
        return info is not None and info["type"] == "file"

    def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return int(self._ask("info", self._at(name))["size"])

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return bytes(request(self.file_system, self.url, lambda: read_whole(self.file_system, self._at(name))))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop - 1` of an object, with one request."""
        path = self._at(name)
        return bytes(request(self.file_system, self.url, lambda: read_part(self.file_system, path, start, stop)))

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading at any position. Each piece that is read is asked for like everything else."""
        return open_object(self.file_system, self._at(name), f"{self.url}/{name}")

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """Yield a local path of a copy of an object."""
        with tempfile.TemporaryDirectory(prefix="pad-") as folder:
            path = Path(folder, name)
            with self.open(name) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, 32 << 20)
            yield path

    @contextmanager
    def commit(self, name: str, durable: bool = True, first: bool = False) -> Iterator[Path]:
        """Yield a local path for the block to write to. After the block, the file is uploaded; with `first`, unless
        there is one by then."""
        with tempfile.TemporaryDirectory(prefix="pad-") as folder:
            written = Path(folder, name)
            yield written
            if not (first and self.has(name)):
                write_whole(self.file_system, f"{self.url}/{name}", str(written), self._at(name))

    def append(self, name: str, data: bytes) -> None:
        """Append `data` to an object, by uploading it again."""
        before = self.read(name) if self.has(name) else b""
        with self.commit(name) as partial:
            partial.write_bytes(before + data)

    def delete(self, name: str) -> None:
        """Remove an object, if there is one."""
        with suppress(FileNotFoundError):
            self._ask("rm_file", self._at(name))

    def clean(self, name: str = "", mine: Callable[[str], bool] = lambda name: True) -> None:
        """Do nothing, because an unfinished upload leaves no object."""


def resolved(where: str | Path | Folder) -> str:
    """Return an absolute path, or a URL without the slash at its end."""
    text = str(where)
    return text.rstrip("/") if is_url(text) else str(Path(text).resolve())


def folder_at(shards: str | Path | Folder) -> Folder:
    """Return the folder at a path or at an object store's URL; raise `UserError` if pad does not open the URL."""
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
    """Wait until the disk has stored a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
