"""Find all pairs of hashes that differ in few bits, without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from pad_pipeline.errors import UserError
from pad_pipeline.threads import THREADS, map_ahead

BITS = 64
_AT_ONCE = 1 << 20
"""Candidates that one thread compares at a time; they take 40 bytes each."""
_MOST_PAIRS = 20_000_000
"""Pairs that are held in memory. With what `find_duplicates` makes of them, each takes about 80 bytes."""


def near_pairs(
    hashes: np.ndarray, distance: int, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each pair of rows of which every hash differs in at most `distance` bits.

    The bits of the first hash are dealt to B = distance // 2 + 1 bands. Two hashes of a pair differ in at most one bit
    of some band, since otherwise they would differ in 2 B > distance bits. So only rows are compared that have, in some
    band, the same bits or all but one of them: for random hashes, a share of (bits + 1) / 2^bits of all pairs for each
    band. That is 1% of all pairs for a distance of 8, and 4.5% for 10. With 500,000 hashes, a distance of 10 took 27
    seconds on one core, and 0.3 GB.

    Args:
        hashes: uint64 `[N, H]`, H hashes of each of N images; equal rows are allowed.
        distance: 0..64.
        others: uint64 `[M, H]`; with it, pairs of a row of `hashes` and a row of `others` are returned.

    Returns:
        Rows of `hashes` int64 `[P]`, rows of `others` (or later rows of `hashes`) int64 `[P]`, and the greatest
        distance of a pair's hashes uint8 `[P]`.

    Raises:
        UserError: there are so many pairs that memory could run out.
    """
    bands = [sum(1 << bit for bit in range(band, BITS, distance // 2 + 1)) for band in range(distance // 2 + 1)]
    tasks = [(band, flip) for band, mask in enumerate(bands) for flip in (0, *_bits(mask))]
    search = partial(_near, hashes, hashes if others is None else others, others is None, distance, bands)
    found: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    count = 0
    for parts in map_ahead(search, tasks, THREADS, 2 * THREADS):
        found += parts
        count += sum(len(part[0]) for part in parts)
        if count > _MOST_PAIRS:
            rule = f"more than {_MOST_PAIRS:,} pairs of images are that near to each other"
            raise UserError("distance", distance, rule, "choose a smaller one")
    first, second, apart = (np.concatenate(column) for column in zip(*found, strict=True))
    return first, second, apart


def _bits(mask: int) -> Iterator[int]:
    return (1 << bit for bit in range(BITS) if mask >> bit & 1)


def _near(
    hashes: np.ndarray, others: np.ndarray, same: bool, distance: int, bands: list[int], task: tuple[int, int]
) -> list[tuple[np.ndarray, ...]]:
    """Return the near pairs that agree in one band, except for the bit `flip`, and that no earlier band gives."""
    band, flip = task
    mask = np.uint64(bands[band])
    order = np.argsort(others[:, 0] & mask, kind="stable")
    first = others[order, 0]
    values, wanted = first & mask, hashes[:, 0] & mask
    # Within one set, a pair would be found from both sides: look from the side without the bit, or from the earlier.
    if not same:
        rows = np.arange(len(hashes))
    else:
        rows = order[values & np.uint64(flip) == 0] if flip else order
    wanted = wanted[rows] ^ np.uint64(flip)
    begin, end = np.searchsorted(values, wanted), np.searchsorted(values, wanted, "right")
    if same and not flip:
        begin = np.arange(1, len(rows) + 1)
    totals = np.concatenate([[0], np.cumsum(np.maximum(end - begin, 0))])
    found, start = [], 0
    while start < len(rows):  # one row may have more than `_AT_ONCE` candidates, then it is a piece of its own
        stop = max(int(np.searchsorted(totals, totals[start] + _AT_ONCE, "right")) - 1, start + 1)
        sizes = np.diff(totals[start : stop + 1])
        places = np.arange(sizes.sum()) + np.repeat(begin[start:stop] - (totals[start:stop] - totals[start]), sizes)
        differing = np.repeat(hashes[rows[start:stop], 0], sizes) ^ first[places]
        close = np.flatnonzero(np.bitwise_count(differing) <= distance)
        left, right = np.repeat(rows[start:stop], sizes)[close], order[places[close]]
        found.append(_close(hashes, others, same, distance, bands[:band], left, right))
        start = stop
    return [one for one in found if len(one[0])]


def _close(
    hashes: np.ndarray,
    others: np.ndarray,
    same: bool,
    distance: int,
    earlier: list[int],
    left: np.ndarray,
    right: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return the near pairs among candidates, without those that one of the `earlier` bands gives."""
    differing = hashes[left] ^ others[right]
    apart = np.bitwise_count(differing).max(1, initial=0)
    kept = apart <= distance
    for mask in earlier:
        kept &= np.bitwise_count(differing[:, 0] & np.uint64(mask)) > 1
    left, right, apart = left[kept], right[kept], apart[kept]
    return (np.minimum(left, right), np.maximum(left, right), apart) if same else (left, right, apart)
