"""Read images at their place in a tar that is compressed with gzip, which can only be read forwards."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

from pad_pipeline.images import BadImage
from pad_pipeline.sources.base import open_url
from pad_pipeline.storage import is_url

_PIECE = 1 << 20
_KEPT = 64
"""Pieces of `_PIECE` bytes that stay in memory, because threads ask for images in nearly, not exactly, their order."""
_FILES = 4
"""Files of a process that stay open."""


def is_gzipped(name: str) -> bool:
    """Return whether a path or URL, perhaps with a query, names a compressed tar."""
    return name.lower().partition("?")[0].endswith((".tar.gz", ".tgz"))


def open_gzipped(where: str) -> gzip.GzipFile:
    """Open a gzip file, local or in a store, to read its content from the beginning."""
    if not is_url(where):
        return gzip.GzipFile(fileobj=Path(where).open("rb"))
    return gzip.GzipFile(fileobj=open_url(where))


def read_gzipped(where: str, at: int, size: int) -> bytes:
    """Return `size` bytes of the content of a gzip file, from position `at` on; fewer if it ends before.

    Raises:
        BadImage: the file is damaged before that position.
        OSError: the file can't be read.
    """
    with _lock:
        stream = _streams.pop(where, None) or _Stream(where)
        _streams[where] = stream
        while len(_streams) > _FILES:
            _streams.popitem(last=False)
    try:
        return stream.read(at, size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadImage(f"{where} is damaged before the image ({error})") from error


class _Stream:
    """A gzip file with the last part of its content."""

    def __init__(self, where: str) -> None:
        self.where, self.lock = where, threading.Lock()
        self.stream: Any = None
        self.pieces: deque[bytes] = deque(maxlen=_KEPT)
        self.end = 0

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from position `at` on. Going back by more than what is in memory begins again."""
        if size > _PIECE * (_KEPT - 2):
            raise BadImage(f"it has {size} bytes, which is too much for an image in a compressed tar; unpack the tar")
        with self.lock:
            if self.stream is None or at < self.end - sum(map(len, self.pieces)):
                self.stream = open_gzipped(self.where)
                self.pieces.clear()
                self.end = 0
            while self.end < at + size and (piece := self._next()):
                self.pieces.append(piece)
                self.end += len(piece)
            parts, begin = deque[bytes](), self.end
            for piece in reversed(self.pieces):
                begin -= len(piece)
                if begin < at + size:
                    parts.appendleft(piece)
                if begin <= at:
                    break
            return b"".join(parts)[at - begin : at - begin + size]

    def _next(self) -> bytes:
        """Return the next piece; of a damaged file, what stands before the damage."""
        piece = bytearray()
        try:
            while len(piece) < _PIECE and (more := self.stream.read1(_PIECE - len(piece))):
                piece += more
        except (EOFError, zlib.error, gzip.BadGzipFile):
            if not piece:
                raise
        return bytes(piece)


_lock = threading.Lock()
_streams: OrderedDict[str, _Stream] = OrderedDict()
"""The files that were read last in this process."""
