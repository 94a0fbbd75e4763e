"""What every source has in common: the images that it yields, what it counts, and how paths are checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.records import Planned
from pad_pipeline.storage import file_system, is_url, url_problem


class Source(Protocol):
    """A pile of images."""

    origin: str
    """What the user named: the folder, the file, the pattern."""
    root: str
    """The folder, or the URL of one, that every path is relative to."""
    counts: Counter[str]
    """What was left out or altered, by reason; complete once the images have been listed."""

    def __iter__(self) -> Iterator[Planned]:
        """The images, always in the same order. Read as they are asked for: memory does not grow with their number."""
        ...


def read_json(field: str, path: Path) -> Any:
    """A JSON file of the user's.

    Raises:
        UserError: it is not there, or is not JSON.
    """
    if not path.is_file():
        raise UserError(field, path, "there is no such file", "check the path")
    try:
        text = path.read_text("utf-8-sig")
        value = json.loads(text)
        return clean(value) if "\\ud" in text.lower() else value
    except (ValueError, RecursionError) as error:
        raise UserError(field, path, f"it is not valid JSON ({error})", "mend or re-download the file") from error


def clean(value: Any) -> Any:
    """Parsed JSON without lone surrogates. Only an escape can make one; no UTF-8 file can hold it, so it is replaced
    before it spreads."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(entry) for entry in value]
    if isinstance(value, dict):
        return {clean(name): clean(entry) for name, entry in value.items()}
    return value


def require_folder(images: Path | str) -> str:
    """Return `images` in full, if it is a folder or the URL of one.

    Raises:
        UserError: it is not.
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


def path_problem(source: str) -> str:
    """Why `source` can't name an image below the root; empty when it can. Purely by its text: no file is touched."""
    if not source:
        return "the image path is empty"
    if "\0" in source:
        return "the image path holds a NUL character"
    if source.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", source):
        return f"the image path {source!r} is absolute; it must be relative to the image root"
    if ".." in source and ".." in source.replace("\\", "/").split("/"):
        return f"the image path {source!r} climbs out of the image root"
    return ""


def location_problem(source: str) -> str:
    """As `path_problem`, where URLs are allowed too."""
    return url_problem(source) if is_url(source) else path_problem(source)


def below(root: str, source: str) -> str:
    """An absolute path below a local root as one relative to it; anything else as it is."""
    prefix = root.rstrip("/") + "/"
    return source[len(prefix) :] if source.startswith(prefix) else source


def ending_of(name: str) -> str:
    """The ending of a path or of a URL, which may have a query behind it; in lower case."""
    return Path(urlsplit(name).path if is_url(name) else name).suffix.lower()
