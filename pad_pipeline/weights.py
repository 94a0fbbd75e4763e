"""From a name in the settings to files on this machine: local path, hub name or URL, checked against sha256.

Nothing here runs code from a download, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import fsspec
import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from rich.progress import wrap_file
from safetensors import SafetensorError, safe_open

from pad_pipeline.console import errors
from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder, whole, write_whole

_PACKAGED = Path(__file__).parent / "miniature/models"
_HUB_FILE = re.compile(r"hf://(?:(spaces|datasets)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def cache_folder() -> Path:
    """Where downloads by URL and known hashes are kept: `$PAD_CACHE`, or `~/.cache/pad`."""
    return _expanded(os.environ.get("PAD_CACHE", "~/.cache/pad"))


def local_path(reference: str) -> Path:
    """The path that a reference means if it is a local one: `~` is the home folder, and `miniature:PATH` lies in the
    models that come with the package, wherever it is installed on this node."""
    prefix, _, rest = reference.partition(":")
    return _PACKAGED / rest if prefix == "miniature" else _expanded(reference)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody has that name: then it is a file's
        return Path(path)


def is_file_reference(reference: str) -> bool:
    """Whether a reference means one file, and not a model's folder or hub name."""
    remote = bool(_HUB_FILE.fullmatch(reference)) or reference.startswith(("https://", "http://"))
    return remote or reference.endswith((".pth", ".pt", ".bin", ".safetensors")) or local_path(reference).is_file()


def fetch_file(field: str, reference: str, sha256: str = "") -> Path:
    """The local path of one weight file.

    Args:
        field: the setting that names it, for errors ("tagger.weights").
        reference: a local path, `miniature:PATH`, `https://...`, or `hf://[spaces/|datasets/]owner/name[@revision]/file`.
        sha256: what the file must hash to; empty to accept any (the hash is recorded in run.json all the same).

    Raises:
        UserError: it is not there, can't be reached, or is another file than it should be.
    """
    if hub := _HUB_FILE.fullmatch(reference):
        kind, repository, revision, name = hub.groups()
        try:
            path = Path(hf_hub_download(repository, name, revision=revision, repo_type=kind and kind.removesuffix("s")))
        except Exception as error:
            raise _unreachable(field, reference, error) from error
    elif reference.startswith(("https://", "http://")):
        path = _download(field, reference, sha256)
    else:
        path = local_path(reference)
        if not path.is_file():
            raise UserError(field, reference, "there is no such file", "give the path of a downloaded checkpoint")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise UserError(
            field,
            reference,
            f"its sha256 is {found}, and should be {sha256}: the file is damaged or another one",
            f"delete {path} and fetch it again, or correct the sha256 in the settings",
        )
    return path


def fetch_folder(field: str, reference: str, revision: str, patterns: list[str]) -> Path:
    """The local folder of a Hugging Face model: a folder as it is, or a hub name from the hub's cache.

    Args:
        field: the setting that names it, for errors.
        reference: a local folder or `owner/name`.
        revision: branch, tag or commit on the hub; empty for its default.
        patterns: the files that are wanted, as globs.
    """
    folder = local_path(reference)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(field, reference, "this is a file, not a model folder", "give the folder that holds it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        raise UserError(
            field,
            reference,
            "this is neither a folder nor a hub name (owner/name)",
            "correct the path or the name",
        )
    try:
        return Path(snapshot_download(reference, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(field, reference, error) from error


def fetch_model(field: str, reference: str, revision: str = "") -> Path:
    """The folder of a whole Hugging Face model: its small files, and its weights as safetensors, or else as `.bin`."""
    small = ["*.json", "*.txt", "tokenizer.model"]
    folder = fetch_folder(field, reference, revision, [*small, "model*.safetensors"])
    if not any(folder.glob("model*.safetensors")):
        folder = fetch_folder(field, reference, revision, [*small, "pytorch_model*.bin"])
    return folder


def _unreachable(field: str, reference: str, error: Exception) -> UserError:
    first_line = (str(error).splitlines() or [""])[0][:120]
    return UserError(
        field,
        reference,
        f"it is not in the cache and could not be fetched ({type(error).__name__}: {first_line})",
        "run once with network; or download it elsewhere and name its local path instead, for a build in the TOML file "
        "of `models`; or point HF_HOME (hub) or PAD_CACHE (other URLs) at a cache that holds it",
    )


def _download(field: str, url: str, sha256: str) -> Path:
    """The cached copy of a URL; fetched to a temporary name first, so that a broken transfer leaves nothing, and a file
    with another hash than the pinned one neither."""
    target = _download_path(url)
    if target.is_file():
        return target
    try:
        with _made_once(target, target.is_file) as partial:
            if partial:
                with fsspec.open(url, "rb") as source, partial.open("wb") as sink:
                    _copy(source, sink, target.name)
                if sha256 and (found := file_sha256(partial)) != sha256:
                    rule = f"what came has the sha256 {found}, and should have {sha256}"
                    raise UserError(field, url, rule, "try again; if it comes again, the file there was changed")
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(field, url, error) from error
    return target


@contextmanager
def _made_once(target: Path, is_there: Callable[[], bool]) -> Iterator[Path | None]:
    """Yield a path to write `target` of the cache to; None where `target` is there, or another process made it now.

    One process of a node makes it, and the others wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_there():
            yield None
        else:
            Folder(target.parent).clean(target.name)
            with whole(target) as partial:
                yield partial


def _download_path(url: str) -> Path:
    return cache_folder() / "files" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]


def _copy(source: Any, sink: BinaryIO, name: str) -> None:
    """Copy with a progress bar on a terminal.

    Raises:
        OSError: it ended early.
    """
    total = getattr(source, "size", None)
    with wrap_file(
        source, total or 0, description=f"fetching {name}", console=errors, disable=not errors.is_terminal
    ) as stream:
        shutil.copyfileobj(stream, sink, 1 << 22)
    if total is not None and sink.tell() != total:
        raise OSError(f"it ended after {sink.tell()} of {total} bytes")


def cached(reference: str, revision: str = "") -> Path | None:
    """Where a reference lies on this machine, without any network; None if it was never fetched.

    Args:
        reference: as `fetch_file` or `fetch_folder` take it.
        revision: of a hub name.
    """
    if hub := _HUB_FILE.fullmatch(reference):
        kind, repository, named, name = hub.groups()
        with suppress(Exception):  # a name that the hub would not take
            found = try_to_load_from_cache(repository, name, revision=named, repo_type=kind and kind.removesuffix("s"))
            return Path(found) if isinstance(found, str) else None
        return None
    if reference.startswith(("https://", "http://")):
        path = _download_path(reference)
        return path if path.is_file() else None
    if (path := local_path(reference)).exists():
        return path
    try:
        return Path(snapshot_download(reference, revision=revision or None, local_files_only=True))
    except Exception:
        return None


def file_sha256(path: Path) -> str:
    """The file's sha256. Large files are hashed once: the result is cached by path, size and time of change."""
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
            write_whole(known, digest)
    return digest


def folder_sha256(folder: Path, patterns: list[str]) -> str:
    """One sha256 over the names and hashes of the files in `folder` that match `patterns`."""
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    files = {name: file_sha256(folder / name) for name in names}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


_HASHES = "hashes.json"


def converted(path: Path, kind: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache that holds `path` in another form, made once for each content of the file, and again where
    the cache was damaged.

    Args:
        path: the original.
        kind: names the form; change it when `write` changes.
        write: fills the folder that it is given.

    Raises:
        UserError: the cache can't be written, or what `write` raises.
    """
    target = cache_folder() / "converted" / f"{kind}-{file_sha256(path)[:32]}"
    if _is_sound(target):
        return target
    try:
        with _made_once(target, lambda: _is_sound(target)) as partial:
            if partial:
                partial.mkdir()
                write(partial)
                hashes = {file.name: file_sha256(file) for file in partial.iterdir()}
                (partial / _HASHES).write_text(json.dumps(hashes))
    except (OSError, SafetensorError) as error:
        rule = f"the converted {path.name} can't be written there ({error})"
        raise UserError("PAD_CACHE", cache_folder(), rule, "make room, or point PAD_CACHE at another folder") from error
    return target


def _is_sound(folder: Path) -> bool:
    """Whether a converted folder holds what was written into it."""
    try:
        hashes = json.loads((folder / _HASHES).read_text())
        return bool(hashes) and all(file_sha256(folder / Path(name).name) == found for name, found in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_tensors(field: str, path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: safetensors, or a `.pth` or `.bin` of torch, memory-mapped and never unpickled.

    Of a training checkpoint (`{"model": ..., "optimizer": ...}`) the model's.

    Raises:
        UserError: it can't be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        try:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        except RuntimeError:  # files of torch before 1.6 can't be mapped
            state = torch.load(path, weights_only=True, map_location="cpu")
        tensors_by_name: dict[str, torch.Tensor] = state.get("model", state)
        if not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors_by_name.items()
        ):
            raise ValueError("it holds more than named tensors")
        return tensors_by_name
    except Exception as error:  # torch, zipfile and safetensors raise a dozen kinds for what they can't read
        # What torch says of a pickle with code ends in advice to run it.
        said = "it holds more than tensors" if isinstance(error, UnpicklingError) else str(error)[:200]
        rule = f"it can't be read as a checkpoint: truncated, or another kind of file ({said})"
        raise UserError(field, path, rule, "fetch the file again, or name the right one") from error


def check_numbers(field: str, path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are no weights: of whole numbers, not finite, sparse, without data, or claiming a shape that
    their data do not fill (a file of kilobytes would take all memory).

    Args:
        field: the setting that names the file.
        path: the file.
        state: what is used of it.
    """
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
    """What kind of model has tensors of these names."""
    return next((name for name, keys in _FAMILIES.items() if keys <= state.keys()), "no model known here")


def check_state_dict(
    field: str, path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a checkpoint whose tensors are not exactly those of the network that the settings describe.

    Args:
        field: the setting that names the file.
        path: the file.
        expected: name -> shape in the network.
        found: name -> shape in the file.
    """
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    reshaped = [name for name in expected.keys() & found.keys() if tuple(expected[name]) != tuple(found[name])]
    if not (missing or extra or reshaped):
        return
    details = [f"{len(missing)} tensors are missing (such as {min(missing)})"] if missing else []
    details += [f"{len(extra)} are unknown (such as {min(extra)})"] if extra else []
    details += [
        f"{name} is {tuple(found[name])} where {tuple(expected[name])} is expected" for name in sorted(reshaped)[:1]
    ]
    raise UserError(
        field,
        path,
        f"its tensors look like {family_of(found)} and do not fit the network that the settings describe: "
        + ", ".join(details),
        "give the matching checkpoint, or correct the sizes in the TOML file of `models`",
    )


class ModelFile(NamedTuple):
    """One file or model folder that a setting names."""

    field: str
    """The setting, with its section: `tagger.weights`."""
    reference: str
    """The setting's value: a path, a URL or a hub name."""
    sha256: str = ""
    """The pinned hash; empty where any file is accepted."""
    revision: str = ""
    code: Path | None = None
    """The Python file of a class of the user's own, which has no reference."""

    @property
    def path(self) -> Path | None:
        """The path on this machine; None for a file that is not here."""
        return self.code or cached(self.reference, self.revision)
