"""A file that can tell whether any of its bytes was changed: it holds the sha256 of itself."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import BinaryIO

_MARK = b"sealed-sha256:"
UNSEALED = (_MARK + b"0" * 64).decode()
"""What a writer puts into the file where the seal is to stand."""
_SEAL = re.compile(_MARK + b"([0-9a-f]{64})")
_WINDOW = 1 << 20
"""Bytes that are read at a time: a plan may be larger than memory."""


def seal(path: Path) -> str:
    """Replace the last `UNSEALED` in the file by the sha256 of the whole file, taken while it still stood there.

    Returns:
        The sha256.
    """
    with path.open("r+b") as stream:
        at = _last(stream, UNSEALED.encode())
        assert at >= 0, f"{path} has no place for a seal"
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(at + len(_MARK))
        stream.write(digest.encode())
    return digest


def check_seal(stream: BinaryIO) -> tuple[str, str]:
    """What the seal of a file says, empty where there is none; and what is wrong with the file, empty where not one of
    its bytes was changed."""
    start = _last(stream, _MARK)
    stream.seek(max(start, 0))
    stated = _SEAL.match(stream.read(len(UNSEALED)))
    if start < 0 or not stated:
        return "", "its seal is damaged or missing"
    digest = hashlib.sha256()
    stream.seek(0)
    for size in (*[_WINDOW] * (start // _WINDOW), start % _WINDOW):
        digest.update(stream.read(size))
    digest.update(UNSEALED.encode())
    stream.seek(start + len(UNSEALED))
    while piece := stream.read(_WINDOW):
        digest.update(piece)
    said = stated[1].decode()
    return said, "" if digest.hexdigest() == said else "it was changed after it was written (seal)"


def seal_of(content: bytes) -> str:
    """What the seal of a small file says; empty where there is none."""
    return check_seal(io.BytesIO(content))[0]


def seal_problem(content: bytes) -> str:
    """What is wrong with the bytes of a small file; empty where not one of them was changed."""
    return check_seal(io.BytesIO(content))[1]


def _last(stream: BinaryIO, mark: bytes) -> int:
    """Where the mark stands last; -1 where it does not. It is looked for from the end, where it usually is."""
    start, behind = stream.seek(0, io.SEEK_END), b""
    while start > 0:
        size = min(_WINDOW, start)
        start -= size
        stream.seek(start)
        piece = stream.read(size) + behind
        if (at := piece.rfind(mark)) >= 0:
            return start + at
        behind = piece[: len(mark) - 1]
    return -1
