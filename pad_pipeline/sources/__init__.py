"""Where images come from: each source yields `Planned` images in a fixed order and counts what it leaves out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pad_pipeline.errors import UserError


@dataclass
class Planned:
    """One image as a source lists it, before any file is opened."""

    id: str
    source: str
    """Path relative to the image root."""
    caption: str = ""
    conversations: list[dict[str, str]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    """Why it can't be used; it becomes a failed row, so that no record is lost."""


class Source(Protocol):
    """A pile of images."""

    origin: Path
    """What the user named: the folder or the file."""
    root: Path
    """The folder that every image path is relative to."""
    counts: Counter[str]
    """What was left out or altered, by reason; complete once the images have been listed."""

    def __iter__(self) -> Iterator[Planned]:
        """The images, always in the same order."""
        ...


def read_json(field_name: str, path: Path) -> Any:
    """A JSON file of the user's.

    Raises:
        UserError: it is not there, or is not JSON.
    """
    if not path.is_file():
        raise UserError(field_name, path, "there is no such file", "check the path")
    try:
        data = path.read_bytes()
        value = json.loads(data)
        # Only an escape can make a lone surrogate, which no UTF-8 file can hold: replace those before they spread.
        return _clean(value) if b"\\ud" in data.lower() else value
    except (ValueError, RecursionError) as error:
        raise UserError(field_name, path, f"it is not valid JSON ({error})", "mend or re-download the file") from error


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(entry) for name, entry in value.items()}
    return value


def require_folder(field_name: str, path: Path) -> Path:
    """`path`, if it is a folder.

    Raises:
        UserError: it is not.
    """
    if not path.is_dir():
        rule = "this is not a folder" if path.exists() else "there is no such folder"
        raise UserError(field_name, path, rule, "check the path")
    return path


def path_problem(source: str) -> str:
    """Why `source` can't name an image below the root; empty when it can. Purely by its text: no file is touched."""
    if not source:
        return "the image path is empty"
    if "\0" in source:
        return "the image path holds a NUL character"
    if source.startswith(("/", "\\")) or source[1:2] == ":":
        return f"the image path {source!r} is absolute; it must be relative to the image root"
    if ".." in source.replace("\\", "/").split("/"):
        return f"the image path {source!r} climbs out of the image root"
    return ""


def open_source(images: Path, image_root: Path | None = None) -> Source:
    """The source that `--images` names: a folder, or a LLaVA JSON file with its image root.

    Raises:
        UserError: it is neither.
    """
    from pad_pipeline.sources.folder import FolderSource
    from pad_pipeline.sources.llava import LlavaSource

    if images.suffix.lower() == ".json" and not images.is_dir():
        return LlavaSource(images, image_root or images.parent)
    if images.is_file():
        raise UserError(
            "--images",
            images,
            "this file is neither a folder nor a .json file",
            "name a folder or a LLaVA JSON",
        )
    if image_root is not None:
        raise UserError("--image-root", image_root, "it goes with a LLaVA JSON only", "leave it out for a folder")
    return FolderSource(images)
