"""Fetch files, and ranges of files, from the web and the hub. A broken transfer goes on where it stopped."""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from pad_pipeline import retries
from pad_pipeline.console import progress

TIMEOUT = 60.0
"""Seconds without any byte after which a transfer counts as broken."""
LONGEST_PAUSE = 120.0
"""The most seconds that a server's `Retry-After` is obeyed."""
_PIECE = 1 << 20
_TAIL = 1 << 17
"""Bytes at the end of a file that are read at once, because a zip's directory lies there."""


class RangesRefusedError(Exception):
    """A server sends whole files only."""


class NotAloneError(Exception):
    """A tensor can't be read without the rest of its file; the text says why."""


class Address(NamedTuple):
    """Where the bytes of a file are: it may hold only for a while, because a hub signs its addresses."""

    url: str
    headers: dict[str, str]


class RemoteFile:
    """A file on the web, of which ranges can be read."""

    def __init__(self, locate: Callable[[], Address], size: int, etag: str) -> None:
        self._locate, self.size, self.etag = locate, size, etag
        self._tail = b""
        self._address: Address | None = None

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`.

        Raises:
            RangesRefusedError: the server sends whole files only.
            OSError: the transfer failed several times without progress.
        """
        if start >= self.size - _TAIL and not self._tail:
            self._tail = self._read(max(0, self.size - _TAIL), self.size)
        if start >= (begin := self.size - len(self._tail)):
            return self._tail[start - begin : stop - begin]
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> bytes:
        parts: list[bytes] = []
        self.stream(start, stop, parts.append)
        return b"".join(parts)

    def stream(self, start: int, stop: int, write: Callable[[bytes], Any]) -> None:
        """Give the bytes from `start` up to `stop` to `write`, piece by piece; errors as in `read`."""
        position = start

        def go_on(piece: bytes) -> None:
            nonlocal position
            write(piece)
            position += len(piece)

        def attempt() -> bool:
            # A signed address is used until it fails, and after a failure the hub is asked for a new one.
            (url, headers), self._address = self._address or self._locate(), None
            with _open(url, headers | {"Range": f"bytes={position}-{stop - 1}"}) as answer:
                whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status != HTTPStatus.PARTIAL_CONTENT:
                    raise RangesRefusedError
                if whole.isdigit() and int(whole) != self.size:
                    raise OSError(f"the file there changed while it was read: it has {whole} bytes")
                _copy(answer, stop - position, go_on)
            self._address = Address(url, headers)
            return position >= stop

        _until_done(attempt, lambda: position)


def on_hub(reference: str, name: str, revision: str) -> RemoteFile:
    """Return the file `name` of a model of the hub. The hub's token goes to the hub alone, and not to its CDN.

    Raises the errors of huggingface_hub, and RangesRefusedError if the hub does not tell the file's size.
    """
    url = hf_hub_url(reference, name, revision=revision)

    def facts() -> Any:
        return get_hf_file_metadata(url)

    def locate() -> Address:
        location = facts().location
        return Address(location, build_hf_headers() if _host(location) == _host(url) else {})

    found = facts() if constants.HF_HUB_OFFLINE else retries.ask(facts)
    if not found.size:
        raise RangesRefusedError
    return RemoteFile(locate, found.size, found.etag or "")


def on_web(url: str) -> RemoteFile:
    """Return the file at a URL; raise RangesRefusedError if the server sends whole files only, or OSError."""
    found: list[tuple[int, str]] = []

    def attempt() -> bool:
        with _open(url, {"Range": "bytes=0-0"}) as answer:
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status != HTTPStatus.PARTIAL_CONTENT or not whole.isdigit():
                raise RangesRefusedError
            found.append((int(whole), answer.headers.get("ETag", "").strip('"')))
        return True

    _until_done(attempt, lambda: 0)
    return RemoteFile(lambda: Address(url, {}), *found[0])


def download(url: str, target: Path) -> None:
    """Write the file at `url` to `target`, which appears when it is whole.

    A broken transfer goes on where it stopped, also in a later call, if the server sends ranges and says whether the
    file is still the same (`ETag` or `Last-Modified`). Only one process may write a target at a time.

    Raises:
        OSError: the transfer failed several times without progress.
    """
    part, note = (target.with_name(f".{target.name}.{kind}") for kind in ("part", "version"))
    version = note.read_text("utf-8") if part.is_file() and note.is_file() else ""
    with part.open("r+b" if version else "wb") as sink, progress(f"fetching {target.name}", None, "MB") as update:
        farthest = position = sink.seek(0, io.SEEK_END)

        def write(piece: bytes) -> None:
            nonlocal position, farthest
            sink.write(piece)
            position += len(piece)
            farthest = max(farthest, position)  # a new beginning is no progress
            update(completed=position // 10**6)

        def begin_again() -> None:
            nonlocal position
            position = sink.seek(0)
            sink.truncate()

        def attempt() -> bool:
            nonlocal version
            # Without a version, the rest could be that of another file.
            rest = {"Range": f"bytes={position}-", "If-Range": version} if position and version else {}
            try:
                answer = _open(url, rest)
            except HTTPError as error:
                if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not rest:
                    raise
                begin_again()
                answer = _open(url, {})
            with answer:
                if answer.status != HTTPStatus.PARTIAL_CONTENT and position:  # no ranges, or another file now
                    begin_again()
                if not position:
                    etag = answer.headers.get("ETag") or "W/"
                    version = answer.headers.get("Last-Modified") or "" if etag.startswith("W/") else etag
                    note.write_text(version, "utf-8")
                length = answer.headers.get("Content-Length", "")
                left = int(length) if length.isdigit() else None
                update(total=(position + left) // 10**6 if left is not None else None)
                _copy(answer, left, write)
            return True

        try:
            _until_done(attempt, lambda: farthest)
        except Exception:
            if not position:
                part.unlink()
            raise
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(target)
    note.unlink()


def _host(url: str) -> str:
    return urlsplit(url).netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. The token of a host goes to no other host."""

    def redirect_request(self, req: urllib.request.Request, *parts: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *parts)
        if new and _host(new.full_url) != _host(req.full_url):
            new.headers.pop("Authorization", None)
        return new


def _open(url: str, headers: dict[str, str]) -> Any:
    from pad_pipeline import __version__

    request = urllib.request.Request(url, headers={"User-Agent": f"pad/{__version__}"} | headers)
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _copy(answer: Any, wanted: int | None, write: Callable[[bytes], None]) -> None:
    """Copy `wanted` bytes of an answer (None: all); raise an OSError if it ends early."""
    done = 0
    while wanted is None or done < wanted:
        # `read1` returns what has come, so that nothing of a broken transfer is lost.
        piece = answer.read1(_PIECE if wanted is None else min(_PIECE, wanted - done))
        if not piece:
            break
        write(piece)
        done += len(piece)
    if wanted is not None and done < wanted:
        raise OSError(f"it ended {wanted - done} bytes early")


def _until_done(attempt: Callable[[], bool], position: Callable[[], int]) -> None:
    """Call `attempt` until it returns True. It may fail `retries.TRIES` times in a row without progress.

    Progress is a change of `position()`. A server that asks for a pause (`Retry-After`) gets it.
    """
    failures, before = 0, position()
    while True:
        try:
            if attempt():
                return
        except (OSError, http.client.HTTPException) as error:
            failures = 1 if position() != before else failures + 1
            before = position()
            if failures >= retries.TRIES or retries.is_final(error):
                raise
            pause = retries.PAUSE * 2 ** (failures - 1)
            if isinstance(error, HTTPError):
                with suppress(ValueError):  # a date: rare, and the usual pause will do
                    pause = max(pause, min(float(error.headers.get("Retry-After") or 0), LONGEST_PAUSE))
            time.sleep(pause)
