"""A run -> a dataset repository of the Hugging Face hub: the shards as they are, and a card that is written from them.

The repository is a run's folder too: `pad train` reads hf://datasets/OWNER/NAME where it lies.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.exports.card import REPOSITORY, card
from pad_pipeline.exports.target import MARK, Target
from pad_pipeline.plan import PLAN_NAME
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.shards.stats import Statistics

CARD = "README.md"
SHARDS = ("pad-*.tar", "pad-*.parquet")
"""What readers take for a part of the dataset."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def export_hub(
    shards: ShardFolder,
    target: Target,
    name: str,
    license: str,
    licenses: Mapping[str, str] | None = None,
    repository: str = REPOSITORY,
) -> Iterator[Counter[str]]:
    """Write the folder of the repository; yields as `export_coco` does. Of an earlier export nothing stays: the shards
    of two runs would be read as one dataset.

    Args:
        shards: of a run that is finished.
        target: the folder.
        name: the dataset's, for the card.
        license: of the images, by the hub's names; `other` where it is none of them.
        licenses: of models, see `card`.
        repository: where it will be on the hub, for the card.

    Raises:
        UserError: the run is not finished, or lies in the folder itself; or the repository has no such name.
    """
    if not _NAME.fullmatch(repository):
        raise UserError("repository", repository, "a repository is called OWNER/NAME", "correct the name")
    if not shards.folder.remote and Path(str(shards.folder)).resolve() == target.path.resolve():
        raise UserError("out", target.path, "these are the shards that are read", "name a new folder")
    if missing := shards.run.shards - len(shards.names):
        rule = f"{missing} of its {shards.run.shards} shards are not finished"
        raise UserError("shards", shards.folder, rule, "run the command that makes it again, then export it")
    target.remove(CARD, RUN_NAME)  # first of all: half an export should not be read as a run
    target.remove(*SHARDS, but={f"{shard}.{ending}" for shard in shards.names for ending in ("tar", "parquet")})
    target.remove(".*.partial")
    stats = Statistics(shards)
    for shard in shards.names:
        _take(shards, f"{shard}.tar", target, link=True)
        _take(shards, f"{shard}.parquet", target)
        stats.add(shard)
        yield Counter(images=stats.images, regions=stats.regions)
    for file in (PLAN_NAME, RUN_NAME):
        _take(shards, file, target)
    target.write(CARD, card(stats, name, license, licenses, repository).encode())


def _take(shards: ShardFolder, name: str, target: Target, link: bool = False) -> None:
    """A file of the run: a copy; or another name of the same file, for the large ones that nobody changes in place."""
    with target.file(name) as partial:
        if link and not shards.folder.remote:
            try:
                os.link(Path(str(shards.folder), name).resolve(), partial)
                return
            except OSError:  # another disk, or one without links
                pass
        with shards.folder.open(name) as source, partial.open("xb") as out:  # never into a file that is there already
            shutil.copyfileobj(source, out)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder to the hub; where it is now. Shards that are there and not in the folder go.

    Args:
        folder: what `export_hub` wrote.
        repository: its name, `owner/name`.
        private: whether a new repository is.

    Raises:
        UserError: the hub can't be reached, or does not let this user write there.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, repo_type="dataset", folder_path=folder,
            ignore_patterns=[MARK], delete_patterns=[*SHARDS],
        )  # fmt: skip
    except Exception as error:  # network, rights, names: whatever the client raises is what is wrong
        reason = f"it can't be uploaded ({type(error).__name__}: {error})"
        remedy = "log in with `hf auth login`, check the name, try again"
        raise UserError("repository", repository, reason, remedy) from error
    return f"https://huggingface.co/datasets/{repository}"
