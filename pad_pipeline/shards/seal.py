"""Writes the sha256 of a file into the file itself, as its seal, and checks with the seal that no byte has changed."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import BinaryIO

_MARK = b"sealed-sha256:"
UNSEALED = (_MARK + b"0" * 64).decode()
"""A placeholder that a writer puts into a file. `seal` replaces it."""
_SEAL = re.compile(_MARK + b"([0-9a-f]{64})")
_WINDOW = 1 << 20
"""The number of bytes that are read at a time, because a plan may be larger than memory."""


def seal(path: Path) -> str:
    """Replace a file's last `UNSEALED` by the sha256 of the file as it was before, and return this sha256."""
    with path.open("r+b") as stream:
        at = _last(stream, UNSEALED.encode())
        assert at >= 0, f"{path} has no place for a seal"
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(at + len(_MARK))
        stream.write(digest.encode())
    return digest


def check_seal(stream: BinaryIO) -> tuple[str, str]:
    """Return the sha256 in a file's seal ("" without a seal), and the problem ("" if no byte has changed)."""
    start = _last(stream, _MARK)
    stream.seek(max(start, 0))
    if not (stated := _SEAL.match(stream.read(len(UNSEALED)))):
        return "", "its seal is damaged or missing"
    digest, sha256 = hashlib.sha256(), stated[1].decode()
    stream.seek(0)
    for size in (*[_WINDOW] * (start // _WINDOW), start % _WINDOW):
        digest.update(stream.read(size))
    digest.update(UNSEALED.encode())
    stream.seek(start + len(UNSEALED))
    while piece := stream.read(_WINDOW):
        digest.update(piece)
    return sha256, "" if digest.hexdigest() == sha256 else "it was changed after it was written (seal)"


def seal_problem(content: bytes) -> str:
    """Return the problem that `check_seal` finds in the content of a small file; empty if no byte has changed."""
    return check_seal(io.BytesIO(content))[1]


def _last(stream: BinaryIO, mark: bytes) -> int:
    """Return the last position of `mark`, or -1. Search from the end, because the mark is usually there."""
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
