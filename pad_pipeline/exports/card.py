"""Writes the dataset card of a run: metadata for the hub, contents, origin, and how to read the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import DatasetCardData

from pad_pipeline.roles import REQUIRED, RESULTS
from pad_pipeline.shards.provenance import Model, Origin, models, origins
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.stats import Statistics

REPOSITORY = "OWNER/NAME"
"""A placeholder for the name of an unknown repository."""
MOST_LABELS = 30
"""The most labels that the card lists."""
_SIZES = ("n<1K", 1000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000), ("1M<n<10M", 10**7)

TEMPLATE = """\
---
{head}
---
# {name}

A Patch-Aligned Dataset (PAD, [arXiv 2505.17316](https://arxiv.org/abs/2505.17316)), written by `pad`: images with
labeled regions, each as a mask on the patch grid of a vision encoder and the averaged word embedding of its label in
an LLM.

## What is in it

| what | how many |
| --- | --- |
{counts}

The view is a square of {view.size} pixels ({view.fit}), {view.grid_text}; an embedding has {width} numbers.

| most frequent labels | regions |
| --- | --- |
{labels}

## How it was made

{made}

| model | name | license | sha256 | settings that decide what is kept |
| --- | --- | --- | --- | --- |
{models}

The licenses are those that the models' authors state, where `pad` knows them. The images have licenses of their
owners; `license` above is what the publisher of this dataset states about the images.

## How it is read

```python
from datasets import load_dataset

for sample in load_dataset("{repository}", split="train", streaming=True):
    print(sample["json"]["regions"], sample["masks.npy"], sample["embeds.npy"])
```

`masks.npy` is uint8 `[regions, grid, grid]`: 255 x the covered share of each patch. `embeds.npy` is float16
`[labels, width]`; row `json.regions[i].embedding` is that of region i. `jpg` is the image's own file.
"""


def card(stats: Statistics, name: str, license: str, licenses: Mapping[str, str], repository: str = REPOSITORY) -> str:
    """Return the card of the dataset `name` in Markdown.

    `stats` are the statistics of the whole run. `license` is the hub's name for the license of the images, or `other`.
    `licenses` has the licenses of models, by their names in the settings or by sha256. `repository` is `owner/name`.
    """
    run = stats.shards.run
    head = DatasetCardData(
        pretty_name=name,
        license=license,
        task_categories=["image-to-text", "image-segmentation"],
        tags=["webdataset", "patch-aligned", "multimodal", "arxiv:2505.17316"],
        size_categories=[next((size for size, most in _SIZES if stats.images < most), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "pad-*.tar"}]}],
    )
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
        made=_made(run),
        models=_table(_row(what, model, licenses) for what, model in models(run)),
        repository=repository,
    )


def _made(run: Run) -> str:
    """Describe the origins of the regions, and the parts of the source that were left out."""
    paragraphs = [_origin(origin) for origin in origins(run)]
    if len(paragraphs) > 1:
        ways = f"`pad merge` brought together runs that were made in {len(paragraphs)} ways:\n\n"
        paragraphs = [ways + "\n".join(f"{number}. {text}" for number, text in enumerate(paragraphs, 1))]
    if run.counts:
        left = "; ".join(f"{_cell(what)}: {number}" for what, number in run.counts.items())
        paragraphs.append(f"What the last command left out of its source, or altered: {left}.")
    return "\n\n".join(paragraphs)


def _origin(origin: Origin) -> str:
    """Describe the models and the edits of one origin."""
    given = ", ".join(RESULTS[steps[0]] for steps in REQUIRED if origin.models.keys().isdisjoint(steps))
    file = "From an annotation file, which people made, or whatever wrote the file"
    by_models = "By models, as `pad build` runs them"
    if not given:
        text = f"{by_models}; no person has corrected labels or masks."
    elif origin.models:
        text = f"{file}: {given}. {by_models}: {', '.join(RESULTS[step] for step in origin.models)}."
    else:
        text = f"{file}; `pad import` took it over, and made the masks' patches and the embeddings."
    edits = [", ".join(_setting(name, value) for name, value in edit.items()) for edit in origin.edits]
    return " ".join([text, *(f"Then `pad retarget` changed the regions: {edit}." for edit in edits)])


def _row(what: str, model: Model, licenses: Mapping[str, str]) -> tuple[str, ...]:
    known = (licenses[key] for key in (model.name, *model.hashes.values()) if key in licenses)
    hashes = ", ".join(_cell(f"{name} {sha[:16]}") for name, sha in model.hashes.items())
    deciding = ", ".join(_setting(name, value) for name, value in model.deciding.items())
    return what, _cell(model.name), next(known, "see the model's own page"), hashes, deciding


def _setting(name: str, value: Any) -> str:
    """Describe a setting by name and value, but a list or a map by its length."""
    if isinstance(value, list | dict):
        return _cell(f"{name} of {len(value)} {'label' if len(value) == 1 else 'labels'}")
    return _cell(f"{name} {value}")


def _table(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _cell(text: str) -> str:
    """Escape text of unknown origin, so that it can't add markup, table cells or lines."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())
