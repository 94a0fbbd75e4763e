"""Reads the images of PAD shards for an analysis, and finds the tokens that show each label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import PatchRule, select_patches
from pad_pipeline.images import BadImage
from pad_pipeline.records import IndexRow
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.rows import Rows
from pad_pipeline.threads import map_ahead
from pad_pipeline.training.examples import Preprocessor, decode_settings
from pad_pipeline.training.projector import pool

THREADS = 4


class LabeledImage(NamedTuple):
    """An image, its labels, and the tokens that show each label."""

    key: str
    pixels: Tensor
    """The view, float32 `[3, size, size]`, normalized for the vision tower."""
    labels: list[str]
    """The distinct labels, in the order of the image's regions."""
    shown: Tensor
    """Whether a token shows a label, bool `[L, M]`."""
    caption: str


class EncodedBatch(NamedTuple):
    """A batch of images, and the outputs of the model for them."""

    images: list[LabeledImage]
    patches: Tensor
    """The output of the vision tower, `[B, P, c]`."""
    tokens: Tensor
    """The output of the projector, `[B, M, d]`."""


def encoded_batches(
    shards: ShardFolder, rows: Rows, count: int, subject: Subject, rule: PatchRule, size: int
) -> Iterator[EncodedBatch]:
    """Yield the first `count` images of `rows` in batches of `size`. Threads read the next batch meanwhile.

    `rule` decides which patches show a label. With `soft` or `any`, every patch that a mask touches shows its label.
    Raise `UserError` if the model needs another view than the shards have, or if an image can't be decoded.
    """
    preprocessor = subject.preprocessor(shards.run.view)

    def read(number: int) -> LabeledImage:
        return _read(shards, rows[number], subject, preprocessor, rule)

    images = map_ahead(read, range(count), THREADS, size)
    while batch := list(islice(images, size)):
        yield EncodedBatch(batch, *subject.encode_images(torch.stack([image.pixels for image in batch])))


def _read(
    shards: ShardFolder, row: tuple[str, IndexRow], subject: Subject, preprocessor: Preprocessor, rule: PatchRule
) -> LabeledImage:
    sample = shards.sample(*row)
    try:
        pixels = preprocessor.pixels(sample.image, decode_settings(shards))
    except BadImage as error:
        text = f"the image of {sample.key} can't be decoded ({error})"
        raise UserError("shards", shards.folder, text, f"see `pad verify {shards.folder}` with `deep`") from error
    names = [region["label"] for region in sample.meta["regions"]]
    labels = list(dict.fromkeys(names))
    coverage, grid = sample.coverage, subject.pooled_grid
    if grid != subject.grid:
        flat = torch.from_numpy(coverage.reshape(-1, subject.grid**2))
        # Round up, so that the value of a token that a region touches stays above 0.
        coverage = pool(subject.projector, flat, subject.grid).ceil().byte().numpy().reshape(-1, grid, grid)
    chosen = torch.from_numpy(select_patches(coverage, rule).reshape(-1, grid**2))
    shown = torch.zeros(len(labels), grid**2, dtype=torch.bool)
    for name, mask in zip(names, chosen, strict=True):
        shown[labels.index(name)] |= mask > 0
    return LabeledImage(sample.key, pixels, labels, shown, sample.meta["caption"])


def label_names(shards: ShardFolder, rows: Rows, count: int, progress: Callable[[int], object]) -> list[str]:
    """Return the distinct labels of the first `count` images of `rows`, sorted. Call `progress` after each image with
    the number of images that have been read."""

    def names(number: int) -> set[str]:
        return {region["label"] for region in shards.sample(*rows[number], image=False).meta["regions"]}

    labels: set[str] = set()
    for done, found in enumerate(map_ahead(names, range(count), THREADS, 256), 1):
        labels |= found
        progress(done)
    return sorted(labels)


def first_captions(shards: ShardFolder, rows: Rows, count: int, most: int) -> dict[str, str]:
    """Return the captions of the first images of `rows` that have one, by key: at most `most`, of `count` images."""
    found: dict[str, str] = {}
    for number in range(count):
        if len(found) == most:
            break
        sample = shards.sample(*rows[number], image=False)
        if sample.meta["caption"].strip():
            found[sample.key] = sample.meta["caption"]
    return found
