"""Reads the nouns of WordNet from its database files, `index.noun` and `data.noun` (format: wndb(5WN))."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from pad_pipeline.errors import UserError

_MOST_BYTES = 256 << 20
_UP = ("@", "@i")
"""Pointers to what a thing is a kind of, and to what it is an instance of."""


class WordNet:
    """The nouns of WordNet in a folder such as `/usr/share/wordnet`.

    Raises:
        UserError: a file is missing, or is no database of WordNet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, self._data = (self._read(name) for name in ("index.noun", "data.noun"))
        self._first: dict[str, int] = {}
        """Word -> the position of its most common sense in the data."""
        for line in index.splitlines():
            if line.startswith(b" "):  # the license
                continue
            try:
                parts = line.split()
                senses, pointers = int(parts[2]), int(parts[3])
                self._first[parts[0].decode().replace("_", " ")] = int(parts[len(parts) - senses])
                if len(parts) != 6 + pointers + senses or parts[1] != b"n":
                    raise ValueError("a line has another number of fields")
            except (IndexError, ValueError) as error:
                raise self._broken("index.noun", error) from error

        if not self._first:
            raise self._broken("index.noun", ValueError("there is no word in it"))

    def kinds(self, word: str) -> Iterator[list[str]]:
        """Yield the words with the meaning of `word`, then those for what it is a kind of, nearest first.

        The most common sense of the word is taken, and all senses that it leads to.
        """
        if word not in self._first:
            return
        waiting, seen = deque([self._first[word]]), set()
        while waiting:
            at = waiting.popleft()
            if at not in seen:
                seen.add(at)
                words, up = self._synset(at)
                yield words
                waiting += up

    def _synset(self, at: int) -> tuple[list[str], list[int]]:
        """Return the words of a set of synonyms, and the positions of the sets above it."""
        try:
            end = self._data.index(b"\n", at)
            parts = self._data[at:end].split(b" | ")[0].decode().split()
            if int(parts[0]) != at:
                raise ValueError(f"no entry begins at {at}")
            count = int(parts[3], 16)
            if 2 * count > len(parts) or 4 * int(parts[4 + 2 * count]) > len(parts):
                raise ValueError("an entry has another number of fields")
            words = [parts[4 + 2 * number].replace("_", " ") for number in range(count)]
            first = 5 + 2 * count
            pointers = [parts[first + 4 * n : first + 4 * n + 4] for n in range(int(parts[first - 1]))]
            return words, [int(place) for kind, place, part, _ in pointers if kind in _UP and part == "n"]
        except (IndexError, ValueError) as error:
            raise self._broken("data.noun", error) from error

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise self._broken(name, ValueError("it is far larger than WordNet's"))
            return path.read_bytes()
        except OSError as error:
            rule = f"it can't be read ({error.strerror or type(error).__name__})"
            raise UserError("wordnet", path, rule, "give the folder with WordNet's index.noun and data.noun") from error

    def _broken(self, name: str, error: Exception) -> UserError:
        rule = f"it is no database of WordNet ({error})"
        return UserError("wordnet", self.folder / name, rule, "give the folder with WordNet's index.noun and data.noun")
