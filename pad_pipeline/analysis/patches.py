"""Reads the images of PAD shards for an analysis, with the patches that show each label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import PatchRule, select_patches
from pad_pipeline.images import BadImage
from pad_pipeline.shards.reader import Rows, ShardFolder
from pad_pipeline.training.examples import Preprocessor, decode_settings
from pad_pipeline.training.projector import pool

THREADS = 4
AT_A_TIME = 256
"""Images whose labels are read between two updates of the progress."""


class Shown(NamedTuple):
    """An image, and which of its tokens show which label."""

    key: str
    pixels: Tensor
    """The view, float32 `[3, size, size]`, normalized for the vision tower."""
    labels: list[str]
    """The labels of the image, each once, in the order of its regions."""
    shown: Tensor
    """bool `[L, M]`: whether a label is shown on a token."""
    caption: str


class Seen(NamedTuple):
    """A batch of images, with what the model computed for them."""

    shown: list[Shown]
    before: Tensor
    """The patches of the vision tower, `[B, P, c]`."""
    after: Tensor
    """The tokens of the projector, `[B, M, d]`."""


def seen(
    shards: ShardFolder, rows: Rows, count: int, subject: Subject, rule: PatchRule = "argmax", batch: int = 32
) -> Iterator[Seen]:
    """Yield the first `count` images of a run's usable rows in batches, while threads read the next batch.

    `rule` says which patches show a label; with `soft`, every patch that a mask touches does, as with `any`.

    Raises:
        UserError: the model has another view, or an image can't be decoded.
    """
    sight = subject.sight(shards.run.view)
    with ThreadPoolExecutor(THREADS) as threads:

        def submit(start: int) -> list[Future[Shown]]:
            numbers = range(start, min(start + batch, count))
            return [threads.submit(_read, shards, rows[number], subject, sight, rule) for number in numbers]

        ahead = submit(0)
        for start in range(batch, count + batch, batch):
            group = [future.result() for future in ahead]
            ahead = submit(start)
            before, after = subject.see(torch.stack([one.pixels for one in group]))
            yield Seen(group, before, after)


def _read(
    shards: ShardFolder, row: tuple[str, dict[str, object]], subject: Subject, sight: Preprocessor, rule: PatchRule
) -> Shown:
    sample = shards.sample(*row)
    try:
        pixels = sight.pixels(sample.image, decode_settings(shards))
    except BadImage as error:
        rule_ = f"the image of {sample.key} can't be decoded ({error})"
        raise UserError("shards", shards.folder, rule_, f"see `pad verify {shards.folder}` with `deep`") from error
    names = [region["label"] for region in sample.meta["regions"]]
    labels = list(dict.fromkeys(names))
    coverage, grid = sample.coverage, subject.pooled_grid
    if grid != subject.grid:
        flat = torch.from_numpy(coverage.reshape(-1, subject.grid**2))
        # Rounded up, so that a token that a region touches stays above 0.
        coverage = pool(subject.projector, flat, subject.grid).ceil().byte().numpy().reshape(-1, grid, grid)
    chosen = torch.from_numpy(select_patches(coverage, rule).reshape(-1, grid**2))
    shown = torch.zeros(len(labels), grid**2, dtype=torch.bool)
    for name, mask in zip(names, chosen, strict=True):
        shown[labels.index(name)] |= mask > 0
    return Shown(sample.key, pixels, labels, shown, sample.meta["caption"])


def label_names(shards: ShardFolder, rows: Rows, count: int, progress: Callable[[int], object]) -> list[str]:
    """Return every label of the first `count` images of the usable `rows`, each once, sorted.

    `progress` is called with the number of images that have been read so far.
    """

    def names(number: int) -> set[str]:
        return {region["label"] for region in shards.sample(*rows[number], image=False).meta["regions"]}

    labels: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, count, AT_A_TIME):
            stop = min(start + AT_A_TIME, count)
            labels = labels.union(*threads.map(names, range(start, stop)))
            progress(stop)
    return sorted(labels)
