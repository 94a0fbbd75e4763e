"""Fetch the input embedding of an LLM of the hub, without the rest of the LLM, into pad's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub.errors import RemoteEntryNotFoundError

from pad_pipeline.console import note
from pad_pipeline.errors import UserError
from pad_pipeline.pins import PINS
from pad_pipeline.remote_tensors import DamagedError, find_tensor, save_tensor
from pad_pipeline.transfers import NotAloneError, RangesRefusedError, RemoteFile, on_hub
from pad_pipeline.weights import cache_folder, fetching, is_sound, note_hashes

EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""The ends of the names that LLMs give to their input embedding."""
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""The weight file of an LLM without an index; the first that the hub has."""
SOURCE = "source.json"
"""The file beside a fetched embedding that tells where it comes from, and its sha256."""


def _folder(reference: str, snapshot: Path) -> Path:
    key = hashlib.sha256(f"{reference}\n{snapshot.name}".encode()).hexdigest()[:16]
    return cache_folder() / "embeddings" / f"{reference.replace('/', '--')}-{key}"


def table_here(reference: str, snapshot: Path) -> Path | None:
    """Return the folder of the cache with the embedding of an LLM of the hub; None if it was not fetched.

    `snapshot` is the folder of the LLM's small files in the hub's cache, which is named after the revision.
    """
    folder = _folder(reference, snapshot)
    return folder if is_sound(folder) else None


def fetched_table(field: str, reference: str, snapshot: Path, name: str) -> Path | None:
    """Return a folder with the embedding of an LLM of the hub as safetensors, after a download if needed.

    Only the bytes of the embedding are fetched. One process of a machine does so, and the others wait. A broken
    download goes on where it stopped, also in a later run.

    Args:
        field: the setting that names the LLM, for errors.
        reference: `owner/name`.
        snapshot: see `table_here`.
        name: the file that holds the embedding; empty if the LLM has a single weight file.

    Returns:
        None if only the whole file can be fetched; a note says why.

    Raises:
        UserError: the embedding can't be fetched.
    """
    folder = _folder(reference, snapshot)
    if is_sound(folder):
        return folder
    part = folder.with_name(f"{folder.name}.part")
    try:
        with fetching(field, reference):
            part.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not is_sound(folder):
                    part.mkdir(exist_ok=True)
                    _fetch(field, reference, snapshot.name, name, part)
                    shutil.rmtree(folder, ignore_errors=True)
                    part.rename(folder)
    except (NotAloneError, RangesRefusedError) as error:
        why = str(error) or "the server sends whole files only"
        note(f"{reference}: all of {name or 'its weights'} is fetched, and not the embedding alone ({why})")
        return None
    return folder


def _fetch(field: str, reference: str, revision: str, name: str, part: Path) -> None:
    """Fill the folder `part` with the embedding, where it comes from, and the hashes of both."""
    file, name = _open(reference, revision, name)
    pinned = PINS[reference].sha256.get(name) if reference in PINS and PINS[reference].revision == revision else None
    if pinned and len(file.etag) == len(pinned) and file.etag != pinned:  # the hub's ETag of a large file is its sha256
        rule = f"the sha256 of {name} is {file.etag} there, and should be {pinned}"
        raise UserError(
            field, reference, rule, "look whether HF_ENDPOINT names the right hub; the file there was changed"
        )
    facts: dict[str, Any] = {"reference": reference, "revision": revision, "file": name}
    place = find_tensor(file, EMBEDDING_ENDINGS)
    try:
        facts = save_tensor(file, place, part / "model.safetensors", facts, f"the embedding of {reference}")
    except DamagedError as error:
        remedy = "try again; if it happens again, the file there is damaged"
        raise UserError(field, reference, f"{name}: {error}", remedy) from error
    (part / SOURCE).write_text(json.dumps(facts, indent=1))
    note_hashes(part)


def _open(reference: str, revision: str, name: str) -> tuple[RemoteFile, str]:
    for single in [name] if name else _SINGLE_FILES[:-1]:
        try:
            return on_hub(reference, single, revision), single
        except RemoteEntryNotFoundError:
            if name:
                raise
    return on_hub(reference, _SINGLE_FILES[-1], revision), _SINGLE_FILES[-1]
