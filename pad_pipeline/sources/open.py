"""Choose the source that reads what a user gives as `images`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.sources.base import Source, ending_of, image_store, list_store, require_folder
from pad_pipeline.sources.folder import IMAGE_ENDINGS
from pad_pipeline.sources.gzipped import is_gzipped
from pad_pipeline.sources.manifest import TABLES, ManifestSource
from pad_pipeline.sources.patterns import Files, find_files, is_pattern, listed_files
from pad_pipeline.storage import folder_at, is_url

JSON_LISTS = {".json", ".jsonl", ".ndjson"}
"""Endings of lists of records in JSON."""
_SHOWN = 8
"""The most folders of data sets that an error lists."""
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files that give the captions of the images in their folder, as Hugging Face's `imagefolder` has them."""


def open_source(
    images: str | Path, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """Return the source that reads `images`.

    Args:
        images: a folder of images (its `metadata.jsonl` or `.csv` gives captions), of Parquet files, of tars or of PAD
            shards; a LLaVA JSON or JSONL; a table (Parquet, CSV, TSV) with paths, URLs or bytes of images; a WebDataset
            tar; a pattern (`*`, `?`, `[...]`, `{000..999}`) of tables or tars; or a `.txt` that names tables or tars.
            Each is a local path or a URL.
        image_root: the folder or URL that paths in a list are relative to; by default the folder of the file.
        columns: the columns of a list, or the names in the JSON of a tar, by field (`image`, `id`, `caption`,
            `conversations`), where they can't be guessed.

    Raises:
        UserError: `images` is none of these, or another argument does not go with it.
    """
    from pad_pipeline.shards.run import is_run
    from pad_pipeline.sources.folder import FolderSource, MetadataSource, RemoteFolderSource
    from pad_pipeline.sources.llava import LlavaSource
    from pad_pipeline.sources.many import ListsSource
    from pad_pipeline.sources.stored import ShardsSource
    from pad_pipeline.sources.webdataset import TarSource

    text, remote = str(images), is_url(str(images))
    is_folder = not remote and Path(text).is_dir()
    ending = "" if is_folder else _kind(text)
    if is_folder and (metadata := _metadata(Path(text))):
        return MetadataSource(text, open_source(f"{text.rstrip('/')}/{metadata}", image_root, columns))
    if ending in JSON_LISTS and not is_pattern(text):
        records = LlavaSource(text, image_root, columns)
        records.check_names()
        return records
    opens_folder = is_folder or (remote and not ending and not is_pattern(text))
    if opens_folder:
        with rename_field(shards="images"):
            folder = folder_at(text)
        if is_run(folder):
            _refuse(columns, image_root)
            return ShardsSource(folder)
    files = _files_of_folder(text.rstrip("/")) if opens_folder else _files(text, ending)
    kinds = sorted({_kind(f"{files.root}/{name}") for name in files.names}) if files else []
    if len(kinds) > 1:
        rule = f"it names files of several kinds ({', '.join(kinds)})"
        raise UserError("images", text, rule, "name the files of one kind")
    if files and kinds[0] in JSON_LISTS:
        return ListsSource(text, files, image_root, columns)
    if files and kinds[0] in TABLES:
        return ManifestSource(text, image_root, columns, files)
    if files and kinds[0] == ".tar":
        _refuse(None, image_root)
        return TarSource(text, files, columns)
    _refuse(columns, image_root)
    if files or (not remote and Path(text).is_file()):
        rule = "this file is no folder, no list (.json, .jsonl, .parquet, .csv, .tsv) and no .tar"
        raise UserError("images", text, rule, "name one of these")
    return RemoteFolderSource(text) if remote else FolderSource(Path(text))


def _metadata(folder: Path) -> str:
    """Return the metadata file of a folder of images, or the pattern of those in its subfolders; empty if there are
    none."""
    for name in _METADATA:
        if (folder / name).is_file():
            return name
    return next((f"*/{name}" for name in _METADATA if any(folder.glob(f"*/{name}"))), "")


def _kind(name: str) -> str:
    """Return the ending of a path or URL; that of a compressed tar is `.tar`, too."""
    return ".tar" if is_gzipped(name) else ending_of(name)


def _refuse(columns: Mapping[str, str] | None, image_root: str | Path | None) -> None:
    """Refuse arguments that go with a list only."""
    for field, value in (("columns", ",".join(columns or {})), ("image_root", image_root)):
        if value:
            raise UserError(field, value, "it goes with a list of images only", "leave it out")


def _files(text: str, ending: str) -> Files | None:
    """Return the tables or tars that `text` names; None if it is something else."""
    if ending == ".txt" and not is_url(text) and Path(text).is_file():
        return listed_files(text)
    return find_files(text) if is_pattern(text) or ending in {*TABLES, ".tar"} else None


def _files_of_folder(folder: str) -> Files | None:
    """Return the Parquet files or the tars in a folder, or in its subfolder `data`; of a repository of the hub that has
    them in a folder for each configuration, those of the only one.

    Return None for a folder of images: one that also holds images or other folders, and is no repository of the hub.

    Raises:
        UserError: it holds Parquet files and tars that do not belong together, or several configurations.
    """
    repository = folder.startswith("hf://") or Path(folder, ".gitattributes").is_file()
    for place in (folder, f"{folder}/data"):
        if (names := _data_files(place, repository)) is None:
            return None
        if names:
            return Files(require_folder(place), names)
    subfolders = sorted(name for name, is_folder in _listing(folder) if is_folder) if repository else []
    found = ((name, names) for name in subfolders if (names := _data_files(f"{folder}/{name}", repository)))
    configs = dict(islice(found, _SHOWN + 1))
    shown = [*configs][:_SHOWN]
    if len(configs) > 1:
        more = ", ..." if len(configs) > _SHOWN else ""
        rule = f"it holds several data sets, each in a folder ({', '.join(shown)}{more})"
        raise UserError("images", folder, rule, f"name the folder of one, such as {folder}/{shown[0]}")
    return Files(require_folder(f"{folder}/{shown[0]}"), configs[shown[0]]) if shown else None


def _data_files(folder: str, repository: bool) -> list[str] | None:
    """Return the Parquet files or the tars in a folder; None if it is a folder of images, see `_files_of_folder`."""
    found: dict[str, list[str]] = {".parquet": [], ".tar": []}
    for name, is_folder in _listing(folder):
        if not repository and (name != "data" if is_folder else ending_of(name) in IMAGE_ENDINGS):
            return None
        if not is_folder and (kind := _kind(name)) in found:
            found[kind].append(name)
    tables, tars = sorted(found[".parquet"]), sorted(found[".tar"])
    if tars and not {name.partition(".")[0] for name in tables} <= {name.partition(".")[0] for name in tars}:
        rule = f"it holds tars ({tars[0]}, ...) and Parquet files ({tables[0]}, ...)"
        raise UserError("images", folder, rule, f"name the files of one kind, such as '{folder}/*.tar'")
    return tars or tables  # img2dataset writes a table of facts beside each tar


def _listing(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the name of each entry of a folder, and whether it is a folder; without hidden ones, and nothing if there
    is no such folder."""
    if is_url(folder):
        yield from ((name, is_folder) for name, is_folder, _ in list_store(*image_store(folder), missing_ok=True))
    elif os.path.isdir(folder):  # noqa: PTH112
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
