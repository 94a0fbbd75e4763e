"""What every source has in common: the images that it yields, what it counts, and how paths are checked."""

from __future__ import annotations

import heapq
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.listing import pages
from pad_pipeline.records import Planned
from pad_pipeline.retries import is_not_found
from pad_pipeline.storage import file_system, is_url, url_problem
from pad_pipeline.stores import open_object

_MOST_REASONS = 500
"""The most reasons that are counted separately, so that memory does not grow with the number of records."""
_SORTED_AT_ONCE = 500_000
"""The most file names of one folder that are sorted in memory."""
Listed = tuple[str, int | None]
"""Name of a file, and its size if the listing gives it."""


class Tally(Counter[str]):
    """Numbers of entries that a source left out or changed, by reason, with the first example of each."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts)
        self.examples: dict[str, str] = {}
        """The first entry that was counted, by reason."""
        self.other_texts: dict[str, None] = {}
        """Names of texts, in records without a caption, that the source does not use."""
        self.kept: Tally | None = None
        """What was counted while the source was opened, and is counted once however often the source is read."""

    def note(self, reason: str, example: object) -> None:
        """Count an entry. After `_MOST_REASONS` reasons, others are counted together."""
        if reason not in self and len(self) >= _MOST_REASONS:
            reason = "entries with other reasons"
        self[reason] += 1
        if reason not in self.examples:
            self.examples[reason] = str(example)

    def add(self, other: Tally, where: str = "") -> None:
        """Add all of another tally; `where` goes before its examples."""
        self.update(other)
        self.examples = {kind: f"{where}{example}" for kind, example in other.examples.items()} | self.examples
        self.other_texts |= other.other_texts

    def keep(self) -> None:
        """Make `clear` return to what is counted now."""
        self.kept = Tally()
        self.kept.add(self)

    def clear(self) -> None:
        """Forget everything that was counted since `keep`, or at all."""
        super().clear()
        self.examples.clear()
        self.other_texts.clear()
        if self.kept is not None:
            self.add(self.kept)


class Source(Protocol):
    """A collection of images."""

    origin: str
    """The folder, file or pattern that the user gave."""
    root: str
    """The folder, or the URL of one, that every path is relative to."""
    counts: Tally
    """The number of images that were left out or altered, by reason; complete once all images have been listed."""

    def __iter__(self) -> Iterator[Planned]:
        """Yield the images, always in the same order, each when it is asked for: memory does not grow with their
        number."""
        ...


def read_json(field: str, path: Path) -> Any:
    """Read a JSON file of the user.

    Raises:
        UserError: there is no such file, or it is not JSON. The error names the parameter `field`.
    """
    if not path.is_file():
        raise UserError(field, path, "there is no such file", "check the path")
    try:
        return parse_json(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(field, path, f"it is not valid JSON ({error})", "repair or re-download the file") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, without lone surrogates."""
    value = json.loads(text)
    return clean(value) if "\\ud" in text.lower() else value


def clean(value: Any) -> Any:
    """Replace lone surrogates in parsed JSON. Only an escape such as `\\ud800` can make one, and no UTF-8 file can hold
    it."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(entry) for entry in value]
    if isinstance(value, dict):
        return {clean(name): clean(entry) for name, entry in value.items()}
    return value


def should_be(what: str, value: Any, wanted: str) -> str:
    """Return the problem of parsed JSON of a wrong type: `image is a list, and should be one path`."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return f"{what} is {kinds.get(type(value), 'a number')}, and should be {wanted}"


def require_folder(images: Path | str) -> str:
    """Return the absolute path or the URL of the folder `images`.

    Raises:
        UserError: it is no folder, or a URL that pad does not open.
    """
    if isinstance(images, str) and is_url(images):
        if problem := url_problem(images):
            raise UserError("images", images, problem, "copy the files to one of these, or to a local folder")
        return images.rstrip("/")
    path = Path(images)
    if not path.is_dir():
        rule = "this is not a folder" if path.exists() else "there is no such folder"
        raise UserError("images", path, rule, "check the path")
    return str(path.resolve())


def image_store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL of images, and the path in it; an error is one of `images`."""
    with rename_field(url="images"):
        return file_system(url)


def open_url(url: str) -> BinaryIO:
    """Open the file at a URL for reading. In an object store each piece is asked for as in `ask`; the libraries of web
    servers and of the hub have ways of their own."""
    store, path = image_store(url)
    if url.startswith("http") or not getattr(store, "async_impl", False):
        return cast(BinaryIO, store.open(path, "rb"))
    return open_object(store, path, url, 4 << 20)


def list_store(store: Any, path: str, missing_ok: bool = False) -> Iterator[tuple[str, bool, int | None]]:
    """Yield name, whether it is a folder, and size of each entry of a folder in a store, in no order, without hidden
    ones. Memory holds one page of the listing, see `pages`.

    fsspec's own `walk`, `find` and `glob` leave out, without an error, the folders that can't be listed.

    Raises:
        UserError: it can't be listed, or is not there; with `missing_ok`, a folder that is not there is empty.
    """
    try:
        for entry in chain.from_iterable(pages(store, path)):
            whole = entry["name"].rstrip("/")
            name = whole.rpartition("/")[2]
            if name and whole != path.rstrip("/") and not name.startswith("."):
                yield name, entry["type"] == "directory", entry.get("size")
    except Exception as error:  # any of the errors of the network and of the store's library
        if missing_ok and is_not_found(error):
            return
        rule = f"it can't be listed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UserError("images", store.unstrip_protocol(path), rule, "check the URL, and try again") from error


def walk_store(
    store: Any, path: str, depth: float = math.inf, missing_ok: bool = False
) -> Iterator[tuple[str, Iterator[Listed]]]:
    """Yield the path of a folder in a store and of each folder below it, with its files in order, see `list_store`; a
    `depth` of 1 is the folder alone."""
    left = [(path, depth)]
    while left:
        folder, levels = left.pop()
        entries = list_store(store, folder, missing_ok or folder != path)
        folders, files = in_order(entries)
        yield folder, files
        if levels > 1:
            left += [(f"{folder.rstrip('/')}/{name}", levels - 1) for name in reversed(folders)]


def in_order(entries: Iterable[tuple[str, bool, int | None]]) -> tuple[list[str], Iterator[Listed]]:
    """Return the names of the folders among the entries of a folder, sorted, and the files, sorted by name. Memory
    holds the names of the folders and of `_SORTED_AT_ONCE` files; more files are sorted in pieces, on the disk."""
    folders: list[str] = []
    files: list[Listed] = []
    pieces: list[Path] = []
    scratch: tempfile.TemporaryDirectory[str] | None = None
    for name, is_folder, size in entries:
        if is_folder:
            folders.append(name)
            continue
        files.append((name, size))
        if len(files) == _SORTED_AT_ONCE:
            scratch = scratch or tempfile.TemporaryDirectory(prefix="pad-names-")
            pieces.append(Path(scratch.name, str(len(pieces))))
            with pieces[-1].open("w") as piece:  # JSON: a name may hold line breaks and bytes that are not UTF-8
                piece.writelines(f"{json.dumps(entry)}\n" for entry in sorted(files))
            files.clear()

    def merged() -> Iterator[Listed]:
        with ExitStack() as opened:
            if scratch:
                opened.enter_context(scratch)
            read = [map(_listed, opened.enter_context(piece.open())) for piece in pieces]
            yield from heapq.merge(sorted(files), *read) if pieces else sorted(files)

    return sorted(folders), merged()


def _listed(line: str) -> Listed:
    name, size = json.loads(line)
    return name, size


def path_problem(source: str) -> str:
    """Return why `source` can't name an image below the root; empty if it can. No file is touched."""
    if not source:
        return "the image path is empty"
    if "\0" in source:
        return "the image path holds a NUL character"
    drive = source[1:2] == ":" and re.match(r"[A-Za-z]:[\\/]", source)
    if drive or source.startswith(("/", "\\")):
        return f"the image path {source!r} is absolute; it must be relative to the image root"
    if ".." in source and ".." in source.replace("\\", "/").split("/"):
        return f"the image path {source!r} climbs out of the image root"
    return ""


def location_problem(source: str) -> str:
    """Return why `source` can't be a URL, or name an image below the root; empty if it can."""
    return url_problem(source) if is_url(source) else path_problem(source)


def ending_of(name: str) -> str:
    """Return the ending of a path, or of a URL that may end in a query, in lower case."""
    return Path(urlsplit(name).path if is_url(name) else name).suffix.lower()
