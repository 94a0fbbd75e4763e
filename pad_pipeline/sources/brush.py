"""Masks in the run lengths of Label Studio's brush: bytes of a packed bit stream, as its SDK reads and writes them.

The stream has the number of values (32 bits), the bits of a value less 1 (5), and four sizes less 1 (4 bits each). Then
come runs: a bit that says whether one value is repeated, the number of a size (2), the length of the run less 1 (in as
many bits as that size), and the value, or as many values. The values are the channels R, G, B, A of the pixels, row by
row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pad_pipeline.sources.annotated import check_mask_size

_WORD, _SIZES = 8, (3, 4, 8, 16)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return the bytes, 0..255 each, of a mask uint8 `[H, W]`. A pixel that is not 0 becomes opaque white."""
    flat = mask.ravel() != 0
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{4 * flat.size:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts[:-1].tolist(), (4 * np.diff(starts)).tolist(), strict=True):
        value = f"{255 * int(flat[start]):08b}"
        while length > 0:
            number, size = next(pair for pair in enumerate(_SIZES) if length <= 1 << pair[1] or pair[1] == _SIZES[-1])
            now = min(length, 1 << size)
            bits.append(f"1{number:02b}{now - 1:0{size}b}{value}")
            length -= now
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [*int(text, 2).to_bytes(len(text) // 8, "big")]


def decode_brush(values: Any, width: int, height: int) -> np.ndarray:
    """Return the mask uint8 `[height, width]`, 0 or 1, in a list of bytes of unknown origin: the pixels that are not
    transparent.

    Raises:
        ValueError: it is not the mask of an image of this size.
    """
    check_mask_size(width, height)
    total = 4 * width * height
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 256 for value in values):
        raise ValueError("their brush is not a list of bytes")
    bits = "".join(map("{:08b}".format, values))
    if len(bits) < 53 or int(bits[:32], 2) != total:
        raise ValueError("their brush is not of the size of the image")
    if int(bits[32:37], 2) + 1 != _WORD:  # smaller values could take many times the memory of the file
        raise ValueError("their brush has no values of 8 bits")
    at, done = 53, 0
    sizes = [int(bits[start : start + 4], 2) + 1 for start in range(37, 53, 4)]
    lengths, opaque = [], []
    while done < total:
        begin = at + 3 + sizes[int(bits[at + 1 : at + 3] or "0", 2)]
        length = int(bits[at + 3 : begin] or "0", 2) + 1
        repeated = bits[at : at + 1] == "1"
        stop = begin + _WORD * (1 if repeated else length)
        if stop > len(bits) or done + length > total:
            raise ValueError("their brush ends inside a run, or has more values than the image")
        starts = range(begin, stop, _WORD)
        opaque += ["1" in bits[start : start + _WORD] for start in starts]
        lengths += [length] if repeated else [1] * length
        at, done = stop, done + length
    channels = np.repeat(np.array(opaque, np.uint8), lengths)
    return channels.reshape(height, width, 4)[..., 3].copy()
