"""Makes the keys of images unique in a whole plan. The memory does not grow with the plan."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

_OTHER = re.compile(r"[^\w-]")
_KEY = re.compile(r"[\w-]+")
_LONGEST, _NUMBER = 120, 20
"""The greatest length of a plain key, and of the ending that `numbered` appends, in bytes."""
_PARTS = 64
_ENTRY = np.dtype([("hash", "<u8"), ("row", "<u8")])


def plain_key(name: str) -> str:
    """Return an id as a key of letters, digits, `-` and `_`. It has no dot, because readers split names at dots, and at
    most 120 bytes, because file systems limit the length of names."""
    if name.isascii():  # the usual case, in half the time
        return _OTHER.sub("_", name)[:_LONGEST] or "image"
    plain = _OTHER.sub("_", unicodedata.normalize("NFC", name))
    return plain.encode()[:_LONGEST].decode(errors="ignore") or "image"


def is_key(text: str) -> bool:
    """Return whether `plain_key` or `numbered` could have made a key. Such a key is safe as a file name, because it
    can't lead to another folder. Check the keys of shards of unknown origin with this function."""
    return bool(_KEY.fullmatch(text)) and len(text.encode()) <= _LONGEST + _NUMBER


class KeyHashes:
    """Finds repeated keys by 64-bit hashes, which are kept in files that are small enough to be sorted in memory.

    The files in `folder` take 16 bytes for each key. Only one process can use them, because Python's `hash` differs
    from process to process.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"keys-{part:02d}" for part in range(_PARTS)]
        self._rows = 0

    def add(self, keys: Sequence[str]) -> None:
        """Add the keys of the next rows."""
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
        """Return the numbers of the rows whose key an earlier row also has, uint64 `[M]`, sorted."""
        rows = [np.empty(0, "<u8")]
        for path in filter(Path.exists, self._paths):
            entries = np.fromfile(path, _ENTRY)
            entries = entries[np.argsort(entries["hash"], kind="stable")]  # stable: equal hashes keep the order of rows
            entries.tofile(path)
            rows.append(entries["row"][1:][entries["hash"][1:] == entries["hash"][:-1]])
        return np.sort(np.concatenate(rows))

    def __contains__(self, key: str) -> bool:
        """Return whether a row has this key. Call `repeated` first, because it sorts the files."""
        value = np.int64(hash(key)).view("u8")
        path = self._paths[int(value % _PARTS)]
        if not path.exists():
            return False
        hashes = np.memmap(path, _ENTRY, "r")["hash"]
        return value in hashes[np.searchsorted(hashes, value) :][:1]


def numbered(keys: Iterator[tuple[int, str]], hashes: KeyHashes) -> Iterator[tuple[int, str]]:
    """Yield a new key for each row of `KeyHashes.repeated`: `x-2`, `x-3` and so on, without keys that a row has.

    `keys` yields the number and the key of each of these rows, in order. `hashes` has the keys of all rows.
    """
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for row, key in keys:  # new keys do not repeat, because each has the old key and a new number
        yield row, next(new for number in numbers[key] if (new := f"{key}-{number}") not in hashes)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder for the hashes of a plan."""
    return tempfile.TemporaryDirectory(prefix="pad-keys-")
