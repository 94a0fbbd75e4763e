"""A file that can tell whether any of its bytes was changed: it holds the sha256 of itself."""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

_MARK = b"sealed-sha256:"
UNSEALED = (_MARK + b"0" * 64).decode()
"""What a writer puts into the file where the seal is to stand."""
_SEAL = re.compile(_MARK + b"([0-9a-f]{64})")


def seal(path: Path) -> str:
    """Replace the last `UNSEALED` in the file by the sha256 of the whole file, taken while it still stood there.

    Returns:
        The sha256.
    """
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as content:
        at = content.rfind(UNSEALED.encode())
        assert at >= 0, f"{path} has no place for a seal"
        digest = hashlib.sha256(content).hexdigest()
        content[at + len(_MARK) : at + len(UNSEALED)] = digest.encode()
    return digest


def seal_of(content: bytes) -> str:
    """What the seal says; empty where there is none."""
    start = content.rfind(_MARK)
    found = _SEAL.match(content, start) if start >= 0 else None
    return found[1].decode() if found else ""


def seal_problem(content: bytes) -> str:
    """What is wrong with a sealed file's bytes; empty where not one of them was changed."""
    if not (stated := seal_of(content)):
        return "its seal is damaged or missing"
    start = content.rfind(_MARK)
    digest = hashlib.sha256(memoryview(content)[:start])
    digest.update(UNSEALED.encode())
    digest.update(memoryview(content)[start + len(UNSEALED) :])
    return "" if digest.hexdigest() == stated else "it was changed after it was written (seal)"
