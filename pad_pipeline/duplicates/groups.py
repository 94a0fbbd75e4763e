"""Decide which images of a run are copies, and which of their group stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pad_pipeline.duplicates.hashes import Hashed
from pad_pipeline.duplicates.near import near_pairs


class Duplicate(NamedTuple):
    """An image of a run that is a copy."""

    image: Hashed
    of: Hashed
    """The image of the run that stays, or an image of the evaluation set."""
    leak: bool
    """Whether `of` is an image of the evaluation set."""
    distance: int
    """The greater distance of the two perceptual hashes, in bits."""

    @property
    def exact(self) -> bool:
        """Whether the two files are the same, byte for byte."""
        return self.image.sha256 == self.of.sha256


def find_duplicates(images: Sequence[Hashed], against: Sequence[Hashed], distance: int) -> list[Duplicate]:
    """Return the images that are copies, in their order.

    Each image that is also in `against` is returned. Of the other images, each group of copies keeps one: the one with
    the most pixels, or else the first. Every other image of a group is a copy of the one that stays, and not only of a
    copy of it. So a chain of images that change little by little is no group.
    """
    known = [bool(image.sha256) for image in images]
    found = dict(_leaks(images, known, against, distance)) if against else {}
    left = [number for number, usable in enumerate(known) if usable and number not in found]
    found |= dict(_copies(images, left, distance))
    return [found[number] for number in sorted(found)]


def _leaks(
    images: Sequence[Hashed], known: Sequence[bool], against: Sequence[Hashed], distance: int
) -> Iterator[tuple[int, Duplicate]]:
    """Yield the number of each image that is also in `against`, and its nearest image there."""
    by_file = {other.sha256: other for other in reversed(against) if other.sha256}
    looks, of_looks = _looks(images, [number for number, one in enumerate(images) if not one.problem])
    theirs, of_theirs = _looks(against, [number for number, one in enumerate(against) if not one.problem])
    rows, others, apart = near_pairs(looks, distance, theirs)
    order = np.lexsort((others, apart, rows))  # the nearest first
    rows, begin = np.unique(rows[order], return_index=True)
    for row, pair in zip(rows.tolist(), order[begin].tolist(), strict=True):
        for number in of_looks[row]:
            yield number, Duplicate(images[number], against[of_theirs[others[pair]][0]], True, int(apart[pair]))
    for number, usable in enumerate(known):
        if usable and images[number].sha256 in by_file:
            yield number, Duplicate(images[number], by_file[images[number].sha256], True, 0)


def _copies(images: Sequence[Hashed], numbers: list[int], distance: int) -> Iterator[tuple[int, Duplicate]]:
    """Yield the number of each image that does not stay, with the image of its group that does."""
    files: dict[bytes, list[int]] = defaultdict(list)
    for number in numbers:
        if images[number].problem:
            files[images[number].sha256].append(number)
    for same in files.values():
        yield from ((number, Duplicate(images[number], images[same[0]], False, 0)) for number in same[1:])

    looks, of_looks = _looks(images, [number for number in numbers if not images[number].problem])
    for of_look in of_looks:
        of_look.sort(key=lambda number: (-images[number].pixels, number))
    first, second, apart = near_pairs(looks, distance)
    rows, others, apart = np.concatenate([first, second]), np.concatenate([second, first]), np.tile(apart, 2)
    order = np.argsort(rows, kind="stable")
    others, apart, begin = others[order], apart[order], np.searchsorted(rows[order], np.arange(len(looks) + 1))
    taken = set[int]()
    best = [of_look[0] for of_look in of_looks]
    for row in sorted(range(len(looks)), key=lambda row: (-images[best[row]].pixels, best[row])):
        if row in taken:
            continue
        taken.add(row)
        stays = images[best[row]]
        yield from ((number, Duplicate(images[number], stays, False, 0)) for number in of_looks[row][1:])
        near = slice(begin[row], begin[row + 1])
        for other, bits in zip(others[near].tolist(), apart[near].tolist(), strict=True):
            if other not in taken:
                taken.add(other)
                yield from ((number, Duplicate(images[number], stays, False, bits)) for number in of_looks[other])


def _looks(images: Sequence[Hashed], numbers: list[int]) -> tuple[np.ndarray, list[list[int]]]:
    """Return the distinct perceptual hashes of some images, uint64 `[U, 2]`, and the numbers of the images of each."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number in numbers:
        found[images[number].looks].append(number)
    return np.array([*found], np.uint64).reshape(-1, 2), [*found.values()]
