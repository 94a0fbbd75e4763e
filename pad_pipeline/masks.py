"""Check and decode masks in COCO's compressed RLE, which may come from files of unknown origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.images import MOST_PIXELS


def decode_mask(rle: dict[str, Any], width: int, height: int) -> np.ndarray:
    """Check a mask with `check_mask`, and decode it to uint8 `[height, width]`, 0 or 1."""
    check_mask(rle, width, height)
    mask: np.ndarray = coco_mask.decode(rle)
    return mask


def check_sizes(meta: Mapping[str, Any]) -> None:
    """Check the sizes in the JSON member of a sample, without a look at any run length.

    Raises:
        KeyError, TypeError, ValueError: the image has more pixels than pad decodes, or a mask has another size.
    """
    for region in meta["regions"]:
        _check_size(region["rle"], meta["width"], meta["height"])


def _check_size(rle: Mapping[str, Any], width: int, height: int) -> None:
    """Raise `ValueError` unless a mask has the image's size, and memory for it can be allocated."""
    if rle["size"] != [height, width]:
        raise ValueError(f"its mask is {rle['size']} and the image {[height, width]} (H, W)")
    # pycocotools would divide by zero, or would write into memory that it did not get.
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        raise ValueError(f"the image has {width} x {height} pixels, and pad decodes {MOST_PIXELS:,} at most")


def check_mask(rle: dict[str, Any], width: int, height: int) -> None:
    """Raise `ValueError` unless a mask has the image's size and fills it; pycocotools breaks memory for damaged masks.

    The format is that of cocoapi's rleFrString. Each run length is a number in groups of 5 bits, lowest group first.
    A character holds one group; its sixth bit is set if another group follows. From the fourth run on, the number is
    the difference to the run two before.
    """
    _check_size(rle, width, height)
    counts = rle["counts"]
    runs: list[int] = []
    value = shift = 0
    for letter in map(ord, counts) if isinstance(counts, str) else counts:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 25:  # six groups hold any run; a seventh would not fit into 32 bits
            raise ValueError("its mask is no compressed RLE")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                raise ValueError("its mask has a run of negative length")
            value = shift = 0
    if shift:
        raise ValueError("its mask breaks off inside a run")
    if sum(runs) != width * height:
        raise ValueError("its run lengths do not add up to the image")
