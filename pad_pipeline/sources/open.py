"""Choose the source that reads what a user gives as `images`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.sources.base import Source, ending_of
from pad_pipeline.storage import folder_at, is_url

LISTS = {".parquet", ".csv", ".tsv", ".jsonl", ".ndjson"}
"""Endings of files that list images, one in each row."""


def open_source(
    images: str | Path, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """Return the source that reads `images`.

    Args:
        images: a folder, a LLaVA JSON, a list (Parquet, CSV, TSV, JSONL), a pattern of WebDataset tars, or a folder of
            PAD shards; each a local path or a URL.
        image_root: the folder or URL that paths in a JSON or a list are relative to; by default the folder of the file.
        columns: the columns of a list by role (`image`, `id`, `caption`, `conversations`), where they can't be guessed.

    Raises:
        UserError: `images` is none of these, or another argument does not go with it.
    """
    from pad_pipeline.shards.run import is_run
    from pad_pipeline.sources.folder import FolderSource, RemoteFolderSource
    from pad_pipeline.sources.llava import LlavaSource
    from pad_pipeline.sources.manifest import ManifestSource
    from pad_pipeline.sources.stored import ShardsSource
    from pad_pipeline.sources.webdataset import TarSource

    text, remote = str(images), is_url(str(images))
    is_folder = not remote and Path(text).is_dir()
    ending = "" if is_folder else ending_of(text)
    if columns and ending not in LISTS:
        raise UserError("columns", ",".join(columns), "it goes with a list of images only", "leave it out")
    if ending in LISTS:
        return ManifestSource(text, image_root, columns or {})
    if ending == ".json":
        return LlavaSource(text, image_root)
    if image_root is not None:
        rule = "it goes with a LLaVA JSON or a list of images only"
        raise UserError("image_root", image_root, rule, "leave it out")
    if ending == ".tar":
        return TarSource(text)
    if not remote and Path(text).is_file():
        rule = "this file is no folder, no .json, no list (.parquet, .csv, .tsv, .jsonl) and no .tar"
        raise UserError("images", text, rule, "name one of these")
    with rename_field(shards="images"):
        folder = folder_at(text)
    if (remote or is_folder) and is_run(folder):
        return ShardsSource(folder)
    return RemoteFolderSource(text) if remote else FolderSource(Path(text))
