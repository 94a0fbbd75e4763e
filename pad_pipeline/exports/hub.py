"""Exports a run as a dataset repository of the Hugging Face hub: the unchanged shards, and a dataset card.

The repository is also the folder of a run: `pad train` reads hf://datasets/OWNER/NAME on the hub.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.exports.card import card
from pad_pipeline.exports.target import MARK, Target
from pad_pipeline.plan import PLAN_NAME
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.shards.stats import Statistics
from pad_pipeline.storage import resolved

CARD = "README.md"
SHARDS = ("pad-*.tar", "pad-*.parquet")
"""The files that readers regard as parts of the dataset."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def export_hub(
    shards: ShardFolder, target: Target, name: str, license: str, licenses: Mapping[str, str], repository: str
) -> Iterator[Counter[str]]:
    """Write a finished run into the folder `target`, with a card, see `card`.

    The files of an earlier export are removed, because the shards of two runs would be read as one dataset.

    Yields:
        After each shard, the counts of images and regions so far.

    Raises:
        UserError: the run is not finished, or its folder is `target`, or `repository` is not OWNER/NAME.
    """
    if not _NAME.fullmatch(repository):
        raise UserError("repository", repository, "a repository has a name like OWNER/NAME", "correct the name")
    if resolved(shards.folder) == resolved(target.path):
        raise UserError("out", target.path, "it holds the shards that are exported", "name another `out`")
    if missing := shards.run.shards - len(shards.names):
        rule = f"{missing} of its {shards.run.shards} shards are not finished"
        raise UserError("shards", shards.folder, rule, "run the command that makes them again, then export them")
    target.remove(CARD, RUN_NAME)  # removed first, so that an unfinished export is not read as a run
    target.remove(*SHARDS, but={f"{shard}.{ending}" for shard in shards.names for ending in ("tar", "parquet")})
    stats = Statistics(shards)
    for shard in shards.names:
        _copy(shards, f"{shard}.tar", target, link=True)
        _copy(shards, f"{shard}.parquet", target)
        stats.add_shard(shard)
        yield Counter(images=stats.images, regions=stats.regions)
    for file in (PLAN_NAME, RUN_NAME):
        _copy(shards, file, target)
    target.write(CARD, card(stats, name, license, licenses, repository).encode())


def _copy(shards: ShardFolder, name: str, target: Target, link: bool = False) -> None:
    """Copy a file of the run; with `link`, by a hard link if possible: for large files, which never change in place."""
    with target.file(name) as partial:
        if link and not shards.folder.remote:
            with suppress(OSError):  # another file system, or one without hard links
                os.link(Path(str(shards.folder), name).resolve(), partial)
                return
        with shards.folder.open(name) as source, partial.open("xb") as out:  # "x": never into an existing file
            shutil.copyfileobj(source, out)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder that `export_hub` wrote, and return its URL on the hub. `private` is for a new repository.

    Delete the repository's shards that are not in the folder. Raise `UserError` if the hub can't be reached, or if the
    user may not write to the repository.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, repo_type="dataset", folder_path=folder,
            ignore_patterns=[MARK], delete_patterns=[*SHARDS],
        )  # fmt: skip
    except Exception as error:  # the client raises many types: for the network, rights, names
        rule = f"it can't be uploaded ({type(error).__name__}: {error})"
        remedy = "log in with `hf auth login`, check the name, and try again"
        raise UserError("repository", repository, rule, remedy) from error
    return f"https://huggingface.co/datasets/{repository}"
