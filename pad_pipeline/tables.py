"""Fetch the input embedding of an LLM of the hub or of the web, without the rest of the LLM, into pad's cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from filelock import FileLock

from pad_pipeline.console import note
from pad_pipeline.errors import UserError
from pad_pipeline.pins import PINS
from pad_pipeline.remote_tensors import DamagedError, find_tensor, save_tensor
from pad_pipeline.retries import is_not_found
from pad_pipeline.transfers import NotAloneError, RangesRefusedError, RemoteFile, download, on_hub, on_web
from pad_pipeline.weights import WEB, cache_folder, fetching, is_sound, note_hashes

EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""The ends of the names that LLMs give to their input embedding."""
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""The weight file of an LLM without an index; the first that the hub has."""
SOURCE = "source.json"
"""The name of the file beside a fetched embedding with its origin: repository, revision, file, offset, sha256."""
_SMALL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
"""The small files of an LLM on the web, which has no list of its files. All but the first may be absent."""


def web_folder(url: str) -> Path:
    """Return the folder of the cache for the small files of an LLM at a URL."""
    return _cached("llms", url, url.rstrip("/").rsplit("/", 1)[-1])


def fetched_small_files(field: str, url: str) -> Path:
    """Return the folder of an LLM at a URL: its config, its tokenizer and its index, after a download if needed.

    Raises:
        UserError: there is no config.json, or a file can't be fetched.
    """

    def fill(part: Path) -> None:
        refused = []
        for name in _SMALL_FILES:
            try:
                download(f"{url.rstrip('/')}/{name}", part / name)
            except OSError as error:
                if not _absent(error) or name == _SMALL_FILES[0]:
                    raise
                if not is_not_found(error):
                    refused.append(name)
        if refused:
            note(f"{url}: left out, because the server refuses them (403), as if absent: {', '.join(refused)}")

    with fetching(field, url):
        return _made_once(web_folder(url), fill)


def _absent(error: OSError) -> bool:
    """Return whether a server says, or may mean, that it does not have a file.

    A bucket that may not be listed answers 403 for a file that it does not have. A 403 of the hub is a refusal.
    """
    return is_not_found(error) or (isinstance(error, HTTPError) and error.code == HTTPStatus.FORBIDDEN)


def _cached(kind: str, identity: str, name: str) -> Path:
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return cache_folder() / kind / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}-{key}"


def _folder(reference: str, snapshot: Path) -> Path:
    return _cached("embeddings", f"{reference}\n{snapshot.name}", reference.replace("/", "--"))


def _made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, which `fill` fills if it is not there. One process of a machine does so, and the
    others wait. What `fill` leaves when it fails, the next call of it gets again."""
    part = folder.with_name(f"{folder.name}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not is_sound(folder):
            part.mkdir(exist_ok=True)
            fill(part)
            note_hashes(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder


def table_here(reference: str, snapshot: Path) -> Path | None:
    """Return the folder of the cache with the embedding of an LLM of the hub or the web; None if it was not fetched.

    `snapshot` is the folder of the LLM's small files. In the hub's cache it is named after the revision.
    """
    folder = _folder(reference, snapshot)
    return folder if is_sound(folder) else None


def fetched_table(field: str, reference: str, snapshot: Path, name: str, tensor: str) -> Path | None:
    """Return a folder with the embedding of an LLM as safetensors, after a download if needed.

    Only the bytes of the embedding are fetched. One process of a machine does so, and the others wait. A broken
    download goes on where it stopped, also in a later run.

    Args:
        field: the setting that names the LLM, for errors.
        reference: `owner/name`, or a URL.
        snapshot: see `table_here`.
        name: the file that holds the embedding; empty if the LLM has a single weight file.
        tensor: the name of the embedding, or empty.

    Returns:
        None if only the whole file can be fetched; a note says why.

    Raises:
        UserError: the embedding can't be fetched.
    """
    if found := table_here(reference, snapshot):
        return found
    endings = (tensor,) if tensor else EMBEDDING_ENDINGS
    try:
        with fetching(field, reference):
            return _made_once(
                _folder(reference, snapshot), lambda part: _fetch(field, reference, snapshot.name, name, endings, part)
            )
    except (NotAloneError, RangesRefusedError) as error:
        why = str(error) or "the server sends whole files only"
        note(f"{reference}: all of {name or 'its weights'} is fetched, and not the embedding alone ({why})")
        return None


def _fetch(field: str, reference: str, revision: str, name: str, endings: tuple[str, ...], part: Path) -> None:
    """Fill the folder `part` with the embedding, and with where it comes from."""
    file, name = _open(reference, revision, name)
    pinned = PINS[reference].sha256.get(name) if reference in PINS and PINS[reference].revision == revision else None
    if pinned and len(file.etag) == len(pinned) and file.etag != pinned:  # the hub's ETag of a large file is its sha256
        rule = f"the sha256 of {name} is {file.etag} there, and should be {pinned}"
        raise UserError(
            field, reference, rule, "look whether HF_ENDPOINT names the right hub; the file there was changed"
        )
    facts: dict[str, Any] = {"reference": reference, "revision": revision, "file": name}
    place = find_tensor(file, endings)
    try:
        facts = save_tensor(file, place, part / "model.safetensors", facts, f"the embedding of {reference}")
    except DamagedError as error:
        remedy = "try again; if it happens again, the file there is damaged"
        raise UserError(field, reference, f"{name}: {error}", remedy) from error
    (part / SOURCE).write_text(json.dumps(facts, indent=1))


def _open(reference: str, revision: str, name: str) -> tuple[RemoteFile, str]:
    """Return the file with the embedding, and its name, which is `name` or one of `_SINGLE_FILES`."""
    for one in [name] if name else _SINGLE_FILES:
        try:
            if reference.startswith(WEB):
                return on_web(f"{reference.rstrip('/')}/{one}"), one
            return on_hub(reference, one, revision), one
        except OSError as error:
            if name or not _absent(error):
                raise
    raise NotAloneError(f"it has neither {' nor '.join(_SINGLE_FILES)}")


def fetched_weights(field: str, url: str, folder: Path, name: str) -> None:
    """Fetch the whole weight file of an LLM at a URL into its folder, if it is not there."""
    names = [name] if name else [*_SINGLE_FILES]
    with fetching(field, url), FileLock(folder.with_name(f".{folder.name}.lock")):
        for one in names:
            if (folder / one).is_file():
                return
            try:
                return download(f"{url.rstrip('/')}/{one}", folder / one)
            except OSError as error:
                if not _absent(error) or one == names[-1]:
                    raise
