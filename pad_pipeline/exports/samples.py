"""The samples of a run as exports read them, with the names of their image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pad_pipeline.errors import UserError
from pad_pipeline.images import ENDINGS
from pad_pipeline.shards.reader import Sample, ShardFolder


def samples_by_shard(
    shards: ShardFolder, counts: Counter[str], image: bool = True
) -> Iterator[tuple[str, Iterator[Sample]]]:
    """Yield the name and the samples of each shard, with the bytes of the images or without. `counts` gets the number
    of images as they are read, and of failed images, which are left out."""
    for name in shards.names:
        yield name, _samples(shards, name, counts, image)


def _samples(shards: ShardFolder, name: str, counts: Counter[str], image: bool) -> Iterator[Sample]:
    for row in shards.index(name):
        if row["status"] == "failed":
            counts["failed images, left out"] += 1
        else:
            counts["images"] += 1
            yield shards.sample(name, row, image=image)


def image_name(sample: Sample) -> str:
    """Return the name of an exported image; raise `UserError` if its stated format is none that pad decodes."""
    kind = sample.meta.get("format")
    if not isinstance(kind, str) or kind not in ENDINGS:
        rule = "pad does not decode images of this format"
        raise UserError("shards", f"format {repr(kind)[:80]} of {sample.key}", rule, "see `pad verify` with `deep`")
    return f"{sample.key}.{ENDINGS[kind]}"
