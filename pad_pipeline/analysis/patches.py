"""What an analysis reads: images of PAD shards with the patches that each label is shown on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import PatchRule, select_patches
from pad_pipeline.images import BadImage
from pad_pipeline.shards.reader import Rows, ShardFolder
from pad_pipeline.training.abstractor import pool_coverage
from pad_pipeline.training.examples import Sight, decode_settings

THREADS = 4
AT_A_TIME = 256
"""Images whose labels are read between two signs of progress."""


class Shown(NamedTuple):
    """An image and what is where on it."""

    key: str
    pixels: Tensor
    """float32 `[3, size, size]`, normalized."""
    labels: list[str]
    """Each once, in order."""
    shown: Tensor
    """bool `[L, M]`, the tokens of each."""
    caption: str


class Seen(NamedTuple):
    """Images as the model sees them."""

    shown: list[Shown]
    before: Tensor
    """`[B, P, c]`, patches of the tower."""
    after: Tensor
    """`[B, M, d]`, tokens."""


def seen(
    shards: ShardFolder, rows: Rows, count: int, subject: Subject, rule: PatchRule = "argmax", batch: int = 32
) -> Iterator[Seen]:
    """The images of a run that did not fail, in its order; images are read while others are computed.

    Args:
        shards: the run.
        rows: its `usable` ones.
        count: how many of them, the first.
        subject: the model that looks at them.
        rule: which patches a mask shows; `soft` counts all that it touches, as `any` does.
        batch: images that are computed at a time.

    Raises:
        UserError: the model has another view, or an image can't be decoded.
    """
    sight = subject.sight(shards.run.view)
    with ThreadPoolExecutor(THREADS) as threads:

        def begin(start: int) -> list[Future[Shown]]:
            numbers = range(start, min(start + batch, count))
            return [threads.submit(_read, shards, rows[number], subject, sight, rule) for number in numbers]

        ahead = begin(0)
        for start in range(batch, count + batch, batch):
            group = [future.result() for future in ahead]
            ahead = begin(start)
            before, after = subject.see(torch.stack([one.pixels for one in group]))
            yield Seen(group, before, after)


def _read(
    shards: ShardFolder, row: tuple[str, dict[str, object]], subject: Subject, sight: Sight, rule: PatchRule
) -> Shown:
    sample = shards.sample(*row)
    try:
        pixels = sight.pixels(sample.image, decode_settings(shards))
    except BadImage as error:
        rule_ = f"the image of {sample.key} can't be decoded ({error})"
        raise UserError("shards", shards.folder, rule_, f"see `pad verify {shards.folder}` with `deep`") from error
    names = [region["label"] for region in sample.meta["regions"]]
    labels = list(dict.fromkeys(names))
    coverage = sample.coverage
    if subject.pooled_grid != subject.grid:
        flat = torch.from_numpy(coverage.reshape(-1, subject.grid**2))
        pooled = pool_coverage(flat, subject.grid, subject.pooled_grid).ceil().byte().numpy()  # a touch stays above 0
        coverage = pooled.reshape(-1, subject.pooled_grid, subject.pooled_grid)
    chosen = torch.from_numpy(select_patches(coverage, rule).reshape(-1, subject.pooled_grid**2))
    shown = torch.zeros(len(labels), subject.pooled_grid**2, dtype=torch.bool)
    for name, mask in zip(names, chosen, strict=True):
        shown[labels.index(name)] |= mask > 0
    return Shown(sample.key, pixels, labels, shown, sample.meta["caption"])


def label_names(shards: ShardFolder, rows: Rows, count: int, progress: Callable[[int], object]) -> list[str]:
    """Every label of the first `count` of these images, each once, sorted.

    Args:
        shards: the run.
        rows: its `usable` ones.
        count: how many of them.
        progress: is told how many have been looked at.
    """

    def names(number: int) -> set[str]:
        return {region["label"] for region in shards.sample(*rows[number], image=False).meta["regions"]}

    found: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, count, AT_A_TIME):
            stop = min(start + AT_A_TIME, count)
            found = found.union(*threads.map(names, range(start, stop)))
            progress(stop)
    return sorted(found)


def seeded(key: str, seed: int) -> np.random.Generator:
    """Chance that is a function of the image, in whatever order images come."""
    return np.random.default_rng([seed, *key.encode()])
