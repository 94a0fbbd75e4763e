"""Find or download the model files that settings name, and check their hashes and tensors.

No code from a download is run, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from pad_pipeline import retries
from pad_pipeline.errors import UserError
from pad_pipeline.hub_errors import explained, is_for_now
from pad_pipeline.pins import pinned_files, pinned_revision
from pad_pipeline.storage import Folder, atomic_write, atomic_write_text
from pad_pipeline.transfers import NotAloneError, RangesRefusedError, download

_PACKAGED = Path(__file__).parent / "miniature/models"
_HUB_FILE = re.compile(
    r"hf://(?:(?P<repo_type>space|dataset)s/)?(?P<repo_id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<filename>.+)"
)
WEB = ("https://", "http://")
_HASHES = "hashes.json"
_MEMBERS = {"vision": "clip", "llm": "llm", "llm.llm": "llm"}
"""Setting -> the model of the miniature that the bare name `miniature` means there."""


def cache_folder() -> Path:
    """Return pad's cache folder: `$PAD_CACHE`, or `~/.cache/pad`."""
    return _expanded(os.environ.get("PAD_CACHE", "~/.cache/pad"))


def local_path(reference: str) -> Path:
    """Return the path of a local reference: `~` is the home folder, `miniature:PATH` a shipped model."""
    prefix, _, rest = reference.partition(":")
    return _PACKAGED / rest if prefix == "miniature" else _expanded(reference)


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises if a file's name begins with `~`)


def is_file_reference(reference: str) -> bool:
    """Return whether a reference names one file, and not a model's folder or hub name."""
    if _hub_file(reference) or reference.startswith(WEB):
        return True
    return reference.endswith((".pth", ".pt", ".bin", ".safetensors")) or local_path(reference).is_file()


def _hub_file(reference: str) -> dict[str, Any] | None:
    """Return the parts of an `hf://` reference, as arguments of `hf_hub_download`; None for another reference."""
    match = _HUB_FILE.fullmatch(reference)
    return match and match.groupdict()


def fetch_file(field: str, reference: str, sha256: str = "") -> Path:
    """Return the local path of a weight file, after a download if needed.

    Args:
        field: the setting that names the file, for errors ("tagger.weights").
        reference: a local path, `miniature:PATH`, `https://...`, or `hf://[spaces/|datasets/]owner/name[@revision]/file`.
        sha256: the hash that the file must have; empty to accept any (run.json records the hash in both cases).

    Raises:
        UserError: the file does not exist, can't be downloaded, or has another hash.
    """
    if hub := _hub_file(reference):
        with fetching(field, reference):
            path = Path(_from_hub(lambda: hf_hub_download(**hub)))
    elif reference.startswith(WEB):
        path = _download(field, reference, sha256)
    else:
        path = local_path(reference)
        if not path.is_file():
            raise UserError(field, reference, "there is no such file", "give the path of a downloaded checkpoint")
    if sha256 and (found := file_sha256(path)) != sha256:
        rule = f"its sha256 is {found}, and should be {sha256}: the file is damaged or another one"
        # The hub's cache has links to its files, and without the file behind the link nothing would be fetched again.
        remedy = f"delete {path.resolve()} and fetch it again, or correct the sha256 in the settings"
        raise UserError(field, reference, rule, remedy)
    return path


def fetch_folder(field: str, reference: str, revision: str, patterns: list[str]) -> Path:
    """Return the local folder of a Hugging Face model, after a download if needed.

    Args:
        field: the setting that names the model, for errors.
        reference: a local folder, `owner/name`, or `miniature` for the shipped vision tower or LLM.
        revision: branch, tag or commit on the hub; empty for the pinned one, or else for the hub's default.
        patterns: globs of the files to download.

    Raises:
        UserError: the folder does not exist, can't be downloaded, or a pinned file has another hash.
    """
    member = _MEMBERS.get(field) if reference == "miniature" else None
    folder = local_path(f"miniature:{member}" if member else reference)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(field, reference, "this is a file, not a model folder", "give the folder that holds it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        rule = "this is neither a folder nor a hub name (owner/name)"
        raise UserError(field, reference, rule, "correct the path or the name")
    chosen = pinned_revision(reference, revision) or None
    with fetching(field, reference):
        folder = Path(_from_hub(lambda: snapshot_download(reference, revision=chosen, allow_patterns=patterns)))
    for name, sha256 in pinned_files(reference, revision).items():
        if (folder / name).is_file():
            fetch_file(field, str(folder / name), sha256)
    return folder


def _from_hub(fetch: Callable[[], str]) -> str:
    """Call a function of huggingface_hub, and repeat it while the hub is busy. The library does so only in part."""
    for attempt in range(1, retries.TRIES):
        try:
            return fetch()
        except Exception as error:
            if not is_for_now(error):
                raise
        time.sleep(retries.PAUSE * 2**attempt)
    return fetch()


def fetch_model(field: str, reference: str, revision: str = "") -> Path:
    """Return the local folder of a whole Hugging Face model: `fetch_folder` with its small files and its weights.

    The weights are safetensors, or `.bin` files if there are none.
    """
    small = ["*.json", "*.txt", "tokenizer.model"]
    folder = fetch_folder(field, reference, revision, [*small, "model*.safetensors"])
    if not any(folder.glob("model*.safetensors")):
        folder = fetch_folder(field, reference, revision, [*small, "pytorch_model*.bin"])
    return folder


@contextmanager
def fetching(field: str, reference: str) -> Iterator[None]:
    """Turn any error of a download into a UserError with a remedy, except those that ask for the whole file."""
    try:
        yield
    except (UserError, NotAloneError, RangesRefusedError):
        raise
    except Exception as error:
        raise UserError(field, reference, *explained(error, reference)) from error


def _download(field: str, url: str, sha256: str) -> Path:
    """Return the cached copy of a URL, after a download if needed. One process of a machine fetches it, and the others
    wait. A file with another hash is not kept."""
    target = _download_path(url)
    if target.is_file():
        return target
    with fetching(field, url):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                download(url, target)
                if sha256 and (found := file_sha256(target)) != sha256:
                    target.unlink()
                    rule = f"the downloaded file has the sha256 {found}, and should have {sha256}"
                    raise UserError(field, url, rule, "try again; if it happens again, the file there was changed")
    return target


def _download_path(url: str) -> Path:
    return cache_folder() / "files" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]


def cached_path(reference: str, revision: str = "", patterns: Sequence[str] = ()) -> Path | None:
    """Return the local path of a reference for `fetch_file` or `fetch_folder`, without the network; None if it was
    never fetched. `patterns` are those of `fetch_folder`; without them the whole repository is wanted."""
    with suppress(Exception):  # the hub's library raises if it has no copy, and for names that no hub accepts
        if hub := _hub_file(reference):
            found = try_to_load_from_cache(**hub)
            return Path(found) if isinstance(found, str) else None
        if reference.startswith(WEB):
            path = _download_path(reference)
            return path if path.is_file() else None
        if (path := local_path(reference)).exists():
            return path
        chosen = pinned_revision(reference, revision) or None
        wanted = list(patterns) or None
        return Path(snapshot_download(reference, revision=chosen, allow_patterns=wanted, local_files_only=True))
    return None


def file_sha256(path: Path) -> str:
    """Return a file's sha256. For large files, it is cached by path, size and modification time."""
    stat = path.stat()
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    known = cache_folder() / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    if known.is_file():
        return known.read_text()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if stat.st_size > 1 << 26:
        with suppress(OSError):  # a cache that can't be written only costs time
            known.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(known, digest)
    return digest


def folder_sha256(folder: Path, patterns: list[str]) -> str:
    """Return one sha256 for all files in `folder` that match `patterns`, over their names and hashes."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    files = {name: file_sha256(folder / name) for name in names}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def convert_once(path: Path, kind: str, write: Callable[[Path], None]) -> Path:
    """Return a folder of the cache with the file `path` converted by `write`, which gets a new folder to fill.

    `write` runs once for each content of the file, and again if the cache is damaged. Only one process of a machine
    runs it, and the others wait. The name `kind` stands for the format: change it when `write` changes. Raise
    `UserError` if the cache can't be written.
    """
    target = cache_folder() / "converted" / f"{kind}-{file_sha256(path)[:32]}"
    if is_sound(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not is_sound(target):
                Folder(target.parent).clean(target.name)
                with atomic_write(target) as partial:
                    partial.mkdir()
                    write(partial)
                    note_hashes(partial)
    except (OSError, SafetensorError) as error:
        rule = f"the converted {path.name} can't be written there ({error})"
        raise UserError("PAD_CACHE", cache_folder(), rule, "make room, or point PAD_CACHE at another folder") from error
    return target


def note_hashes(folder: Path) -> None:
    """Write the hashes of a folder's files into it, for `is_sound`."""
    hashes = {file.name: file_sha256(file) for file in folder.iterdir() if file.name != _HASHES}
    (folder / _HASHES).write_text(json.dumps(hashes))


def is_sound(folder: Path) -> bool:
    """Return whether every file of a folder of the cache has the hash that `note_hashes` noted."""
    try:
        hashes = json.loads((folder / _HASHES).read_text())
        return bool(hashes) and all(file_sha256(folder / Path(name).name) == found for name, found in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_tensors(field: str, path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint (safetensors, or torch's `.pth` or `.bin`) without running pickled code.

    Of a training checkpoint (`{"model": ..., "optimizer": ...}`), only the model's tensors are returned. Raise
    `UserError` if the file can't be read, or holds something other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        try:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        except RuntimeError:  # files from torch before 1.6 can't be memory-mapped
            state = torch.load(path, weights_only=True, map_location="cpu")
        named: dict[str, torch.Tensor] = state.get("model", state)
        if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in named.items()):
            raise ValueError("it holds more than named tensors")
        return named
    except Exception as error:  # torch, zipfile and safetensors raise a dozen types
        # For a pickle with code, torch's message advises to run the code, so it is not shown.
        reason = "it holds more than tensors" if isinstance(error, UnpicklingError) else str(error)[:200]
        rule = f"it can't be read as a checkpoint: truncated, or another kind of file ({reason})"
        raise UserError(field, path, rule, "fetch the file again, or name the right one") from error


def check_numbers(field: str, path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise a `UserError` for tensors that can't be weights: integers, not finite, sparse, or with less data than their
    shape needs (such a file of kilobytes could take all memory). `path` is the file of the setting `field`."""
    for name, tensor in state.items():
        dense = tensor.layout == torch.strided and not tensor.is_meta and tensor.numel() > 0
        if not dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            rule = f"{name} has no data for its shape {tuple(tensor.shape)}"
        elif not tensor.is_floating_point():
            rule = f"{name} holds {tensor.dtype}, and should hold floating point numbers"
        elif not bool(tensor.float().isfinite().all()):
            rule = f"{name} holds numbers that are not finite"
        else:
            continue
        raise UserError(field, path, rule, "fetch the file again")


_FAMILIES = {
    "RAM++": {"reweight_scale", "tagging_head.encoder.layer.0.crossattention.self.query.weight"},
    "RAM": {"label_embed", "tagging_head.encoder.layer.0.crossattention.self.query.weight"},
    "SAM": {"mask_decoder.iou_token.weight", "image_encoder.pos_embed"},
    "Grounding DINO (original format)": {"transformer.level_embed"},
    "Grounding DINO (transformers)": {"model.level_embed"},
    "LLaMA": {"model.embed_tokens.weight"},
    "CLIP": {"vision_model.embeddings.class_embedding"},
}


def family_of(state: Mapping[str, Any]) -> str:
    """Return the kind of model that a checkpoint holds, by the names of its tensors."""
    return next((name for name, keys in _FAMILIES.items() if keys <= state.keys()), "no model known here")


def check_state_dict(
    field: str, path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a `UserError` unless the tensors of a checkpoint are exactly those of its network.

    `expected` and `found` are the shapes in the network and in the file `path`, by name. `field` names the file.
    """
    reshaped = {
        name: (found[name], shape)
        for name, shape in expected.items()
        if name in found and tuple(shape) != tuple(found[name])
    }
    if details := differences(expected.keys() - found.keys(), found.keys() - expected.keys(), reshaped):
        rule = f"its tensors look like {family_of(found)} and do not fit the network that the settings describe: "
        remedy = "give the matching checkpoint, or correct the sizes in the TOML file of `models`"
        raise UserError(field, path, rule + details, remedy)


def differences(
    missing: Set[str], unknown: Set[str], reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> str:
    """Describe how the tensors of a checkpoint differ from those of its network; empty if they do not.

    `reshaped` has the shapes in the checkpoint and in the network, by name.
    """
    details = [f"{len(missing)} tensors are missing (such as {min(missing)})"] if missing else []
    details += [f"{len(unknown)} are unknown (such as {min(unknown)})"] if unknown else []
    for name in sorted(reshaped)[:1]:
        found, expected = map(tuple, reshaped[name])
        details.append(f"{name} is {found} where {expected} is expected")
    return ", ".join(details)


class ModelFile(NamedTuple):
    """A file or model folder that a setting names."""

    field: str
    """The setting with its section: `tagger.weights`."""
    reference: str
    """The setting's value: a path, a URL or a hub name."""
    sha256: str = ""
    """The hash that the file must have; empty to accept any."""
    revision: str = ""
    code: Path | None = None
    """The Python file of a user's own class. Such a file has no `reference`."""
    patterns: Sequence[str] = ()
    """Globs of the files of a folder that are fetched; none for the whole folder."""

    @property
    def path(self) -> Path | None:
        """The path on this machine; None if the file was never fetched."""
        return self.code or cached_path(self.reference, self.revision, self.patterns)

    @property
    def size(self) -> int | None:
        """The bytes of the file, or of those files of the folder that are read; None if they were never fetched."""
        if (path := self.path) is None:
            return None
        if path.is_file():
            return path.stat().st_size
        found = {file for pattern in self.patterns or ["**/*"] for file in path.glob(pattern) if file.is_file()}
        return sum(file.stat().st_size for file in found)

    @property
    def pin(self) -> dict[str, Any]:
        """What is known of the file for certain: a `revision`, and the `sha256` of each file by its name."""
        files = {**pinned_files(self.reference, self.revision)}
        if self.sha256:
            name = self.reference.rsplit("/", 1)[-1] if is_file_reference(self.reference) else "model.safetensors"
            files[name] = self.sha256
        hub = _hub_file(self.reference)
        revision = hub["revision"] if hub else pinned_revision(self.reference, self.revision)
        return {"revision": revision or "", "sha256": files}
