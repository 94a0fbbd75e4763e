"""Choose the source for what a user names as images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.sources.base import Source, ending_of
from pad_pipeline.storage import folder_at, is_url

LISTS = {".parquet", ".csv", ".tsv", ".jsonl", ".ndjson"}
"""Endings of files that list images, one a row."""


def open_source(
    images: str | Path, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """Return the source that reads `images`.

    Args:
        images: a folder, a LLaVA JSON, a list (Parquet, CSV, TSV, JSONL), a pattern of WebDataset tars, or a folder of
            PAD shards; each a local path or a URL.
        image_root: what relative paths in a JSON or a list are relative to; by default the folder that it lies in.
        columns: for a list: what each of its columns is called, where that can't be guessed.

    Raises:
        UserError: it is none of these, or another argument does not go with it.
    """
    from pad_pipeline.shards.run import is_run
    from pad_pipeline.sources.folder import FolderSource, RemoteFolderSource
    from pad_pipeline.sources.llava import LlavaSource
    from pad_pipeline.sources.manifest import ManifestSource
    from pad_pipeline.sources.shards import ShardsSource
    from pad_pipeline.sources.webdataset import TarSource

    text, remote = str(images), is_url(str(images))
    ending = ending_of(text)
    is_folder = not remote and Path(text).is_dir()
    if columns and (is_folder or ending not in LISTS):
        raise UserError("columns", ",".join(columns), "it goes with a list of images only", "leave it out")
    if not is_folder and ending in LISTS:
        return ManifestSource(text, image_root, columns or {})
    if not is_folder and ending == ".json":
        return LlavaSource(text, image_root)
    if image_root is not None:
        rule = "it goes with a LLaVA JSON or a list of images only"
        raise UserError("image_root", image_root, rule, "leave it out")
    if not is_folder and ending == ".tar":
        return TarSource(text)
    if not remote and Path(text).is_file():
        rule = "this file is no folder, no .json, no list (.parquet, .csv, .tsv, .jsonl) and no .tar"
        raise UserError("images", text, rule, "name one of these")
    with rename_field(shards="images"):
        folder = folder_at(text)
    if (remote or is_folder) and is_run(folder):
        return ShardsSource(folder)
    return RemoteFolderSource(text) if remote else FolderSource(Path(text))
