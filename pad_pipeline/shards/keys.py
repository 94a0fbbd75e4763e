"""Keys that are unique over a whole plan, in memory that does not grow with it."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_OTHER = re.compile(r"[^\w-]")
_KEY = re.compile(r"[\w-]+")
_LONGEST = 120
_NUMBER = 20
"""Bytes for what `numbered` puts behind a key."""
_PARTS = 64
_ENTRY = np.dtype([("hash", "<u8"), ("row", "<u8")])


def plain_key(name: str) -> str:
    """An id as a tar member's name: letters, digits, `-` and `_`; no dot, because readers split there. 120 bytes at
    most, so that every file system can hold the members."""
    if name.isascii():
        return _OTHER.sub("_", name)[:_LONGEST] or "image"
    plain = _OTHER.sub("_", unicodedata.normalize("NFC", name))
    return plain.encode()[:_LONGEST].decode(errors="ignore") or "image"


def is_key(text: str) -> bool:
    """Whether `plain_key` and `numbered` make such keys. What is one can be a file's name: it leads to no other folder.
    Keys from shards of unknown origin need not be."""
    return bool(_KEY.fullmatch(text)) and len(text.encode()) <= _LONGEST + _NUMBER


class KeyHashes:
    """Remembers a 64-bit hash of every key on disk, in parts that are small enough to be sorted in memory.

    The hashes are Python's own: those of another process are others.

    Args:
        folder: where the parts are kept; 16 bytes for each key.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"keys-{part:02d}" for part in range(_PARTS)]
        self._rows = 0

    def add(self, keys: Sequence[str]) -> None:
        """Take the keys of the next rows."""
        entries = np.empty(len(keys), _ENTRY)
        entries["hash"] = np.fromiter(map(hash, keys), "<i8", len(keys)).view("<u8")
        entries["row"] = np.arange(self._rows, self._rows + len(entries))
        self._rows += len(entries)
        parts = entries["hash"] % _PARTS
        order = np.argsort(parts, kind="stable")
        edges = np.searchsorted(parts[order], np.arange(_PARTS + 1))
        for part, path in enumerate(self._paths):
            if edges[part] < edges[part + 1]:
                with path.open("ab") as file:
                    file.write(entries[order[edges[part] : edges[part + 1]]].tobytes())

    def repeated(self) -> np.ndarray:
        """uint64 `[M]`: the rows whose key stood in an earlier row already, in order."""
        found = []
        for path in filter(Path.exists, self._paths):
            entries = np.fromfile(path, _ENTRY)
            entries = entries[np.argsort(entries["hash"], kind="stable")]  # rows stand in order already
            entries.tofile(path)
            found.append(entries["row"][1:][entries["hash"][1:] == entries["hash"][:-1]])
        return np.sort(np.concatenate(found)) if found else np.empty(0, "<u8")

    def __contains__(self, key: str) -> bool:
        """Whether some row has this key; after `repeated`."""
        value = np.int64(hash(key)).view("u8")
        path = self._paths[int(value % _PARTS)]
        if not path.exists():
            return False
        hashes = np.memmap(path, _ENTRY, "r")["hash"]
        at = int(np.searchsorted(hashes, value))
        return at < len(hashes) and bool(hashes[at] == value)


def numbered(keys: Iterator[tuple[int, str]], hashes: KeyHashes) -> Iterator[tuple[int, str]]:
    """A key of their own for rows that repeat one: `x-2`, `x-3`, and so on, whatever is not some row's own key.

    Args:
        keys: row and key of each row of `KeyHashes.repeated`, in order.
        hashes: of all rows.
    """
    copies: Counter[str] = Counter()
    for row, key in keys:
        while True:
            copies[key] += 1
            own = f"{key}-{copies[key] + 1}"
            if own not in hashes:  # nor can it be another copy's: key and number can be told from it
                break
        yield row, own


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Where the hashes lie while a plan is made."""
    return tempfile.TemporaryDirectory(prefix="pad-keys-")
