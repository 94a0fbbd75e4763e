"""What every source has in common: the images that it yields, what it counts, and how paths are checked."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.records import Planned
from pad_pipeline.retries import ask, is_not_found
from pad_pipeline.storage import file_system, is_url, url_problem
from pad_pipeline.stores import attempt, open_object

_MOST_REASONS = 500
"""The most reasons that are counted separately, so that memory does not grow with the number of records."""


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


def list_store(store: Any, path: str, missing_ok: bool = False) -> list[tuple[str, bool, int | None]]:
    """Return name, whether it is a folder, and size of each entry of a folder in a store, sorted, without hidden ones.

    fsspec's own `walk`, `find` and `glob` leave out, without an error, the folders that can't be listed.

    Raises:
        UserError: it can't be listed, or is not there; with `missing_ok`, a folder that is not there is empty.
    """
    try:
        listed = ask(lambda: attempt(store, "ls", path, detail=True))
    except Exception as error:  # any of the errors of the network and of the store's library
        if missing_ok and is_not_found(error):
            return []
        rule = f"it can't be listed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UserError("images", store.unstrip_protocol(path), rule, "check the URL, and try again") from error
    found = ((entry["name"].rstrip("/"), entry["type"] == "directory", entry.get("size")) for entry in listed)
    names = ((name.rpartition("/")[2], *facts) for name, *facts in found if name != path.rstrip("/"))
    return sorted(entry for entry in names if entry[0] and not entry[0].startswith("."))


def walk_store(
    store: Any, path: str, depth: float = math.inf, missing_ok: bool = False
) -> Iterator[tuple[str, dict[str, int | None]]]:
    """Yield the path of a folder in a store and of each folder below it, with its files and their sizes, see
    `list_store`; a `depth` of 1 is the folder alone."""
    entries = list_store(store, path, missing_ok)
    yield path, {name: size for name, is_folder, size in entries if not is_folder}
    for name, is_folder, _ in entries:
        if is_folder and depth > 1:
            yield from walk_store(store, f"{path.rstrip('/')}/{name}", depth - 1, True)


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
