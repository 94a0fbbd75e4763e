"""A run -> a dataset repository of the Hugging Face hub: the shards as they are, and a card that is written from them.

The repository is a run's folder too: `pad train --shards hf://datasets/OWNER/NAME` reads it where it lies.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from pad_pipeline.errors import UserError
from pad_pipeline.exports.target import MARK, Target
from pad_pipeline.plan import PLAN_NAME
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.shards.stats import Statistics

CARD = "README.md"
MOST_LABELS = 30
"""That the card lists."""
SHARDS = ("pad-*.tar", "pad-*.parquet")
"""What readers take for a part of the dataset."""
_SIZES = ("n<1K", 1000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000), ("1M<n<10M", 10**7)


def export_hub(shards: ShardFolder, target: Target, name: str, licence: str) -> Iterator[Counter[str]]:
    """Write the folder of the repository; yields as `export_coco` does. Of an earlier export nothing stays: the shards
    of two runs would be read as one dataset.

    Args:
        shards: of a run that is finished.
        target: the folder.
        name: the dataset's, for the card.
        licence: of the pictures, by the hub's names; `other` where it is none of them.

    Raises:
        UserError: the run is not finished, or lies in the folder itself.
    """
    if not shards.folder.remote and Path(str(shards.folder)).resolve() == target.path.resolve():
        raise UserError("--out", target.path, "these are the shards that are read", "name a new folder")
    if missing := shards.run.shards - len(shards.names):
        rule = f"{missing} of its {shards.run.shards} shards are not finished"
        raise UserError("SHARDS", shards.folder, rule, "run the command that makes it again, then export it")
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
    target.write(CARD, card(stats, name, licence).encode())


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


TEMPLATE = """\
---
{head}
---
# {name}

A Patch-Aligned Dataset (PAD, [arXiv 2505.17316](https://arxiv.org/abs/2505.17316)), written by `pad`: images with
labelled regions, each as a mask on the patch grid of a vision encoder and the averaged word embedding of its label in
an LLM.

## What is in it

| what | how many |
| --- | --- |
{counts}

The view is {view.size} pixels ({view.fit}) in patches of {view.patch}, a grid of {view.grid} x {view.grid}; an
embedding has {width} numbers.

| most frequent labels | regions |
| --- | --- |
{labels}

## How it was made

{made}

| model | name | sha256 |
| --- | --- | --- |
{models}

The models have licences of their own, and the images those of their owners; `license` above is what the publisher of
this dataset states about the images.

## How it is read

```python
from datasets import load_dataset

for sample in load_dataset("OWNER/NAME", split="train", streaming=True):
    print(sample["json"]["regions"], sample["masks.npy"], sample["embeds.npy"])
```

`masks.npy` is uint8 `[regions, grid, grid]`: 255 x the covered share of each patch. `embeds.npy` is float16
`[labels, width]`; row `json.regions[i].embedding` is that of region i. `jpg` is the image's own file.
"""


def card(stats: Statistics, name: str, licence: str) -> str:
    """The dataset card: what the hub reads of it, what is in the dataset, how it was made, how it is read."""
    run = stats.shards.run
    head = DatasetCardData(
        pretty_name=name,
        license=licence,
        task_categories=["image-to-text", "image-segmentation"],
        tags=["webdataset", "patch-aligned", "multimodal", "arxiv:2505.17316"],
        size_categories=[next((said for said, most in _SIZES if stats.images < most), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "pad-*.tar"}]}],
    )
    made = "By people; `pad import` made the masks' patches and the embeddings."
    if run.kind == "build":
        made = "By models, as `pad build` runs them. No person has looked at labels and masks."
    counts = {
        "images": f"{stats.images} ({', '.join(f'{stats.statuses[s]} {s}' for s in ('ok', 'empty', 'failed'))})",
        "with a caption": stats.captions,
        "tags": stats.tags,
        "regions": stats.regions,
        "labels": len(stats.labels),
        "shards": run.shards,
    }
    return TEMPLATE.format(
        head=head.to_yaml(),
        name=_cell(name),
        counts=_table(counts.items()),
        view=run.view,
        width=run.embedding_width,
        labels=_table((_cell(label), number) for label, number in stats.labels.most_common(MOST_LABELS)),
        made=made,
        models=_table(_models(stats)),
    )


def _table(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _models(stats: Statistics) -> Iterator[tuple[str, str, str]]:
    run = stats.shards.run
    named = {"tagger": "weights", "detector": "model", "segmenter": "weights", "llm": "llm"}
    for section, entry in named.items():
        settings = run.settings.get(section)
        if isinstance(settings, dict) and isinstance(settings.get(entry), str):
            sha = run.fingerprints.get("llm_embedding" if section == "llm" else section, "")
            yield section, _cell(settings[entry]), sha[:16]


def _cell(text: str) -> str:
    """Text of unknown origin inside Markdown: no markup, no table cell of its own, no line of its own."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an exported folder to the hub; where it is now. Shards that are there and not in the folder go.

    Args:
        folder: what `export_hub` wrote.
        name: of the repository, `owner/name`.
        private: whether a new repository is.

    Raises:
        UserError: the hub can't be reached, or does not let this user write there.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, repo_type="dataset", folder_path=folder, ignore_patterns=[MARK], delete_patterns=[*SHARDS]
        )
    except Exception as error:  # network, rights, names: whatever the client raises is what is wrong
        reason = f"it can't be uploaded ({type(error).__name__}: {error})"
        raise UserError("--push", name, reason, "log in with `hf auth login`, check the name, try again") from error
    return f"https://huggingface.co/datasets/{name}"
