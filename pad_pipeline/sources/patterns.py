"""Find the files that a path, a pattern, a folder or a text file of paths names."""

from __future__ import annotations

import glob
import math
import os
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from pad_pipeline.errors import UserError
from pad_pipeline.sources.base import image_store, require_folder, walk_store
from pad_pipeline.storage import is_url

_MOST = 1_000_000
"""The greatest number of files that a pattern may name."""
_BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")


class Files(NamedTuple):
    """Files of one kind, in the order in which they are read."""

    root: str
    """The folder that holds them all: an absolute path, or a URL."""
    names: list[str]
    """Their paths relative to `root`."""


def is_pattern(text: str) -> bool:
    """Return whether a path or URL is a pattern: `*`, `?`, `[...]`, `{000..999}` or `{a,b}`. A question mark in a web
    address is none, and neither is a name that a local file has."""
    found = re.search(r"[*\[]" if text.startswith("http") else r"[*?\[]", text) or _BRACES.search(text)
    return bool(found) and (is_url(text) or not os.path.lexists(text))


def find_files(images: str) -> Files:
    """Return the files that `images` names: one file, or all files of a pattern.

    Files of `*`, `?` and `[...]` are sorted; those of braces come in the order of the braces.

    Raises:
        UserError: there is none, or one is missing that the braces name.
    """
    if not is_pattern(images):
        folder, slash, name = images.rpartition("/")
        root = require_folder(folder or slash or ".")
        if not is_url(root):
            _require(root, [name], images)
        return Files(root, [name])
    try:
        expanded = list(islice(braceexpand(images), _MOST + 1)) if _BRACES.search(images) else [images]
    except ValueError as error:  # braceexpand has one of its own
        raise UserError("images", images, f"its braces can't be read ({error})", "correct the pattern") from error
    if len(expanded) > _MOST:
        raise UserError("images", images, f"its braces name more than {_MOST:,} files", "correct the pattern")
    folder = _folder_of_all(expanded)
    root, before = require_folder(folder or "."), len(folder)
    names: dict[str, None] = {}
    for one in expanded:
        below = one[before:].lstrip("/")
        found = _matches(root, below, images) if is_pattern(one) else [below]
        if not found:
            raise UserError("images", one, "no file has such a name", "check the path or the pattern")
        names.update(dict.fromkeys(found))
    if not is_url(root):
        _require(root, [*names], images)
    return Files(root, [*names])


def listed_files(images: str) -> Files:
    """Return the files that a text file names, one path or URL a line, relative to the text file's folder.

    Raises:
        UserError: it can't be read, names no file, or names one that is not there.
    """
    try:
        lines = Path(images).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError("images", images, f"it can't be read ({error})", "save it as a UTF-8 text file") from error
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise UserError("images", images, "it names no file", "write one path or URL a line")
    root = str(Path(images).resolve().parent)
    if all(map(is_url, names)):
        root = _folder_of_all(names)
        if not re.fullmatch(r"[^:]+://[^/]+.*", root):
            raise UserError("images", images, "its URLs have no server in common", "give one list for each server")
        return Files(root, [name[len(root) :].lstrip("/") for name in names])
    if any(map(is_url, names)):
        raise UserError("images", images, "it names both local files and URLs", "give one list for each")
    paths = [os.path.normpath(f"{root}/{name}" if name[:1] != "/" else name) for name in names]
    root = _folder_of_all(paths)
    _require(root, below := [path[len(root) :].lstrip("/") for path in paths], images)
    return Files(root, below)


def _folder_of_all(paths: list[str]) -> str:
    """Return the folder that holds all of the paths or patterns; empty for the current folder."""
    start = os.path.commonprefix(paths)  # noqa: RUF071 (cut at a slash below; `commonpath` breaks URLs)
    folder, slash, _ = start.rpartition("/")
    wild = re.search(r"[*?\[]", folder)
    if wild and (is_url(folder) or not os.path.isdir(folder)):  # noqa: PTH112 (a name may hold a bracket)
        folder, slash, _ = folder[: wild.start()].rpartition("/")
    return folder or slash


def _matches(root: str, pattern: str, origin: str) -> list[str]:
    """Return the files of a pattern, sorted, relative to the root."""
    if is_url(root):
        from fsspec.utils import glob_translate

        store, path = image_store(f"{root}/{pattern}")
        _, prefix = image_store(root)
        fixed = re.split(r"[*\[]" if root.startswith("http") else r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        depth = math.inf if "**" in path else path.count("/") - fixed.count("/")
        folders = walk_store(store, fixed, depth, missing_ok=True)
        files = (f"{folder.rstrip('/')}/{name}" for folder, files in folders for name, _ in files)
        matches = re.compile(glob_translate(path)).fullmatch
        return sorted(file[len(prefix) :].lstrip("/") for file in files if matches(file))
    found = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 (relative, hidden left out)
    names = sorted(name for name in found if Path(root, name).is_file())
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise UserError("images", ascii(name), "the file name is not valid UTF-8", "rename the file")
    return names


def _require(root: str, names: list[str], origin: str) -> None:
    """Refuse local files that are not there."""
    missing = [name for name in names if not Path(root, name).is_file()]
    if missing:
        more = f", and {len(missing) - 1} more of {len(names)} are missing" if len(missing) > 1 else ""
        remedy = "check the path or the pattern"
        raise UserError("images", origin, f"there is no such file: {Path(root, missing[0])}{more}", remedy)
