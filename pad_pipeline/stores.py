"""Requests to an object store through fsspec: each attempt has a time limit, and half an answer counts as none."""

from __future__ import annotations

import errno
import inspect
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from pad_pipeline.retries import StoreError, ask, is_not_found

SECONDS = 120.0
"""The longest time of one attempt; an upload gets a second more for each `RATE` bytes."""
RATE = 1 << 20
"""Bytes a second that an upload must reach."""
_PIECE, _MOST = 1 << 20, 32 << 20
"""Bytes of an object that are read at once, at least and at most."""


def attempt(store: Any, method: str, *arguments: Any, seconds: float = 0, **options: Any) -> Any:
    """Call a method of fsspec's file system `store` once. Without `seconds`, it may take `SECONDS`.

    Libraries that are not asynchronous, such as the Hugging Face hub's, have time limits of their own.
    """
    from fsspec.asyn import sync

    coroutine = getattr(store, f"_{method}", None)
    if getattr(store, "async_impl", False) and inspect.iscoroutinefunction(coroutine):
        return sync(store.loop, coroutine, *arguments, timeout=seconds or SECONDS, **options)
    return getattr(store, method)(*arguments, **options)


def read_whole(store: Any, path: str, size: int | None = None) -> bytes:
    """Read an object with one attempt. Raise `EOFError` if fewer or more bytes come than the store says it has."""
    size = attempt(store, "info", path)["size"] if size is None else size
    data = bytes(attempt(store, "cat_file", path, start=0)) if size else b""
    if size is not None and len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes came")
    return data


def read_part(store: Any, path: str, start: int, stop: int) -> bytes:
    """Read the bytes `start` to `stop - 1` of an object with one attempt; fewer if the object ends before.

    Raise `EOFError` if fewer bytes come, though the object has them, or more.
    """
    data = bytes(attempt(store, "cat_file", path, start=start, end=stop)) if start < stop else b""
    short = len(data) < stop - start
    if len(data) > stop - start or (short and (attempt(store, "info", path)["size"] or 0) > start + len(data)):
        raise EOFError(f"{len(data)} of {stop - start} bytes came")
    return data


def upload(store: Any, local: str, path: str) -> None:
    """Write an object with one attempt. Raise `EOFError` if the store then has another number of bytes."""
    size = os.path.getsize(local)  # noqa: PTH202
    attempt(store, "put_file", local, path, seconds=SECONDS + size / RATE)
    store.invalidate_cache()
    try:
        found = attempt(store, "info", path)["size"]
    except Exception as error:
        if not is_not_found(error):
            raise
        found = 0
    if found != size:
        raise EOFError(f"{found} of {size} bytes arrived")


def write_whole(store: Any, url: str, local: str, path: str) -> None:
    """Write an object, as in `ask`. If only a part of it arrives each time, remove the part again, so that the next run
    does not take it for a damaged file. Tars are no such files: without its index, a tar counts for nothing."""
    try:
        request(store, url, lambda: upload(store, local, path))
    except StoreError as error:
        if isinstance(error.__cause__, EOFError) and os.path.getsize(local) <= _MOST:  # noqa: PTH202
            with suppress(Exception):  # the store fails anyway
                part, whole = read_whole(store, path), Path(local).read_bytes()
                if part != whole and whole.startswith(part):
                    attempt(store, "rm_file", path)
        raise


def store_error(error: Exception, url: str) -> OSError:
    """Return the OSError for what a store's library raised: a FileNotFoundError if there is no such object, and a
    `StoreError` if nothing is known about it."""
    if is_not_found(error):
        return FileNotFoundError(errno.ENOENT, "there is no such object", url)
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    return StoreError(errno.EIO, f"its store gives no answer ({type(error).__name__}: {reason})", url)


def request(store: Any, url: str, question: Any) -> Any:
    """Return the answer to a question to a store, which is asked again as in `ask`.

    Raises:
        FileNotFoundError: the store says that there is no such object.
        StoreError: the store gives no answer, or refuses.
    """
    try:
        return ask(question, store.invalidate_cache)
    except Exception as error:
        raise store_error(error, url) from error


def open_object(store: Any, path: str, url: str, piece: int = _PIECE) -> BinaryIO:
    """Open an object for reading at any position, `piece` bytes at a time. Each piece is asked for as in `ask`."""
    return cast(BinaryIO, io.BufferedReader(_Object(store, path, url), piece))


class _Object(io.RawIOBase):
    """An object of a store as a file for reading."""

    def __init__(self, store: Any, path: str, url: str) -> None:
        super().__init__()
        self.store, self.path, self.url, self.position = store, path, url, 0
        self.length = int(request(store, url, lambda: attempt(store, "info", path)["size"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        start, stop = self.position, min(self.position + min(len(buffer), _MOST), self.length)
        if stop <= start:
            return 0
        piece: bytes = request(self.store, self.url, lambda: read_part(self.store, self.path, start, stop))
        if not piece:
            raise StoreError(errno.EIO, f"it ended at byte {start} of {self.length}", self.url)
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)
