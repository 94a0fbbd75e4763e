"""Puts a random sample of a source's images before all others. It is spread over their folders and sizes."""

from __future__ import annotations

import heapq
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

import numpy as np

from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Source
from pad_pipeline.storage import is_url

_PLACES = 64
"""The most groups of folders. Further folders share groups, so that memory does not grow with their number."""
_Group = tuple[int, int]
"""Images of the same group of folders, and of sizes in bytes between two powers of 4."""


class SampleFirst(NamedTuple):
    """A random sample that stands before all other images in a plan."""

    images: int
    """The size of the sample; 0 for a plan in the source's order."""
    seed: int = 0
    """Another seed gives another sample."""


def in_order(source: Source, first: SampleFirst) -> Iterator[Planned]:
    """Yield all images of a source, those of the sample first, both parts in the source's order.

    With a sample, the source is read up to three times, and the sample is held in memory.
    """
    if not first.images:
        yield from source
        return
    chosen = choose(source, source.root, first.images, first.seed).tolist()
    yield from _at(source, chosen)
    remaining = iter([*chosen, -1])
    following = next(remaining)
    for position, image in enumerate(source):
        if position == following:
            following = next(remaining)
        else:
            yield image


def _at(source: Source, positions: list[int]) -> list[Planned]:
    wanted = set(positions)
    return [image for n, image in enumerate(islice(source, positions[-1] + 1 if positions else 0)) if n in wanted]


def choose(images: Iterable[Planned], root: str, number: int, seed: int) -> np.ndarray:
    """Choose a sample. Each image is as likely as any other, and each group of folders and sizes has its share of the
    sample, rounded up or down at random.

    Args:
        images: all images, in a fixed order.
        root: the root of their source.
        number: the size of the sample.
        seed: another seed gives another sample.

    Returns:
        The positions of the chosen images, int64, sorted. Memory grows with the sample, and not with the images.
    """
    rng, groups = Random(seed), dict[_Group, list[tuple[float, int]]]()
    sizes: dict[_Group, int] = {}
    folders: dict[str, int] = {}
    total = 0
    for position, image in enumerate(images):
        group = _place(image, folders), _size(image, root).bit_length() // 2
        waiting = groups.setdefault(group, [])
        sizes[group] = sizes.get(group, 0) + 1
        entry = -rng.random(), position
        if len(waiting) < number:
            heapq.heappush(waiting, entry)
        else:
            heapq.heappushpop(waiting, entry)
        total = position + 1
    # Points at equal distances from a random one: a group gets as many images as points fall into it.
    step = total / min(number, total) if total else 1.0
    points = np.minimum(rng.random() * step + step * np.arange(min(number, total)), np.nextafter(total, 0))
    names = sorted(groups)
    ends = np.cumsum([sizes[name] for name in names])
    shares: list[int] = np.bincount(np.searchsorted(ends, points, side="right"), minlength=len(names)).tolist()
    chosen = [
        position
        for name, share in zip(names, shares, strict=True)
        for _, position in heapq.nlargest(share, groups[name])  # the random numbers are negative
    ]
    return np.sort(np.array(chosen, np.int64))


def _place(image: Planned, folders: dict[str, int]) -> int:
    """Return the group of an image's folder, tar or table."""
    name = image.place[0] if image.place[1] >= 0 else os.path.dirname(image.place[0] or image.source)  # noqa: PTH120
    if name not in folders and len(folders) >= _PLACES:
        return zlib.crc32(name.encode()) % _PLACES
    return folders.setdefault(name, len(folders))


def _size(image: Planned, root: str) -> int:
    """Return the size of an image in bytes, 0 if it is not known."""
    if image.place[2] < 0 and not image.problem and not is_url(root) and not is_url(image.source):
        try:
            return os.stat(f"{root}/{image.place[0] or image.source}").st_size  # noqa: PTH116 (as in plan.py)
        except (OSError, ValueError):
            return 0
    return max(image.place[2], 0)
