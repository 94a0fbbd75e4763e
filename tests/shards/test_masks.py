"""A region's mask comes back as it was, and no string in its place makes C code read or write beyond its memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from pad_pipeline.masks import check_mask, decode_mask
from tests.shards.children import as_child, in_child


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))),
        st.builds(np.full, st.tuples(st.integers(1, 90), st.integers(1, 90)), st.booleans()),
        arrays(bool, st.tuples(st.just(1), st.integers(1, 60))),
        arrays(bool, st.tuples(st.integers(1, 60), st.just(1))),
    )
)
def test_a_mask_comes_back_as_it_was(mask: np.ndarray) -> None:
    """Empty, full, one pixel, one row, one column, any. Catches rows for columns, a first run of the wrong color, and
    a check that refuses what pycocotools itself wrote."""
    height, width = mask.shape
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    for counts in (rle["counts"], rle["counts"].decode()):
        found = decode_mask({"size": [height, width], "counts": counts}, width, height)
        assert found.dtype == np.uint8
        assert np.array_equal(found, mask)
        for size in ([width + 1, height], [height, width + 1], [height, -width], [width * height]):
            with pytest.raises(ValueError, match="mask"):
                decode_mask({"size": size, "counts": counts}, width, height)


def rle_text(runs: Sequence[int], padded: dict[int, int] | None = None) -> str:
    """Runs as compressed RLE, by the format's definition; with more groups than it needs for the runs in `padded`."""
    text = ""
    for number, run in enumerate(runs):
        value, more, groups = run - (runs[number - 2] if number > 2 else 0), True, 0
        while more:
            bits, value, groups = value & 31, value >> 5, groups + 1
            more = groups < (padded or {}).get(number, 0) or value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def mask_by_hand(counts: str, width: int, height: int) -> np.ndarray:
    """What a compressed RLE means, by the format's definition and without C."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    flat = np.repeat(np.arange(len(runs)) % 2, np.maximum(runs, 0))
    return flat.reshape((height, width) if len(flat) == height * width else -1, order="F")


LETTERS = "0?@PQ`o~\x7f/n_O1é\u0470ßÿ日🙂\ud800\0\n\x80"
"""The edges of the format's range, and what turns into several bytes, or into `?`, on its way to C."""


def hostile_masks() -> None:
    """In a child: see below."""
    as_child()
    lot = random.Random(7)

    def look(counts: Any, width: int, height: int) -> None:
        rle = {"size": [height, width], "counts": counts}
        what = f"{counts!r} as {width} x {height}"
        try:
            check_mask(rle, width, height)
        except ValueError:
            try:
                decode_mask(rle, width, height)
                print(f"{what}: refused by check_mask, decoded all the same")
            except ValueError:
                pass
            return
        try:
            found = decode_mask(rle, width, height)
        except ValueError as error:
            print(f"{what}: check_mask let through what pycocotools reads otherwise ({error})")
            return
        text = counts if isinstance(counts, str) else counts.decode("latin-1")
        if found.shape != (height, width) or not np.array_equal(found, mask_by_hand(text, width, height)):
            print(f"{what}: it became another mask, values {np.unique(found)[:5].tolist()}")

    # Any character of a good one changed, removed or added.
    for _ in range(60):
        height, width = lot.randint(1, 30), lot.randint(1, 30)
        mask = np.frombuffer(lot.randbytes(height * width), np.uint8).reshape(height, width) < lot.choice([3, 128, 250])
        good = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        for at in range(min(len(good), 25)):
            look(good[:at] + good[at + 1 :], width, height)
            for letter in lot.sample(LETTERS, 6):
                look(good[:at] + letter + good[at + 1 :], width, height)
                look(good[:at] + letter + good[at:], width, height)
            changed = bytearray(good.encode())
            changed[at] ^= 1 << lot.randrange(8)
            look(bytes(changed), width, height)
    # A run of 15 is the character that stands for what ASCII does not hold.
    for letter in LETTERS:
        look(rle_text([15, 85]).replace("?", letter), 10, 10)
    # The same runs in more groups than they need: C counts in 32 bits, and is undefined beyond.
    for difference in (-32, -64, -33, -1, 0, 1, 32):
        for groups in range(1, 10):
            runs = [200, 200, 200, 200 + difference]
            look(rle_text([*runs, 1000 - sum(runs)], {3: groups}), 100, 10)
    # Anything.
    for _ in range(3000):
        size = lot.choice([1, 3, 10, 40])
        look("".join(lot.choices(LETTERS, k=size)), lot.randint(1, 9), lot.randint(1, 9))
        look("".join(chr(lot.randint(48, 111)) for _ in range(size)), lot.randint(1, 9), lot.randint(1, 9))
        look(lot.randbytes(size), lot.randint(1, 9), lot.randint(1, 9))
    for text in ("", "o" * 100_000, "0" * 100_000, "O" * 100_000, "~" * 1000 + "0", "P" * 99_999 + "0"):
        look(text, 5, 5)
    for odd in (None, 5, [], [52, 0], {}, True, ["P"], bytearray(b"54"), 1.5, [float("nan")]):
        for size in ([5, 5], [5.0, 5.0], "55", None):
            try:
                decode_mask({"size": size, "counts": odd}, 5, 5)
                print(f"{odd!r} of size {size!r} is a mask")
            except (ValueError, TypeError):
                pass


def test_no_string_makes_pycocotools_read_or_write_beyond_its_memory() -> None:
    """pycocotools trusts the string: it corrupted memory, or showed what lay in it, on strings from a stranger's file.
    Each is refused with a ValueError, or means a mask of exactly the stated size; what `check_mask` lets through,
    pycocotools reads the same way. Catches a check that reads other bytes than C does (text outside ASCII), and runs of
    so many groups that C's integers overflow."""
    assert in_child(hostile_masks) == []
