"""The sum over sampled points of deformable attention as a Triton kernel, which comes with PyTorch for GPUs.

It reads each point and the four pixels around it, and writes the sums only. Its numbers are those of
`pad_pipeline.stages.dino.sampling.sample`, apart from the order of the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _sample(
    value: Any, levels: Any, locations: Any, weights: Any, sums: Any, positions: Any, queries: Any,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the sum of one query of one head in one image."""
    sum_number = tl.program_id(0).to(tl.int64)
    head, image = sum_number % HEADS, sum_number // HEADS // queries
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        first = image * positions + tl.load(levels + 3 * level + 2)
        for point in tl.static_range(POINTS):
            place = (sum_number * LEVELS + level) * POINTS + point
            x = tl.load(locations + 2 * place) * width - 0.5
            y = tl.load(locations + 2 * place + 1) * height - 0.5
            weight = tl.load(weights + place)
            left, top = tl.floor(x), tl.floor(y)
            for corner in tl.static_range(4):
                column, row = left + corner % 2, top + corner // 2
                share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                # A place far outside the level would overflow an integer.
                pixel = tl.where(inside, row, 0).to(tl.int64) * width + tl.where(inside, column, 0).to(tl.int64)
                start = ((first + pixel) * HEADS + head) * CHANNELS
                total += tl.load(value + start + channel, mask=inside, other=0).to(tl.float32) * (weight * share)
    tl.store(sums + sum_number * CHANNELS + channel, total)


def sample_on_gpu(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum as `FusedSampling.forward` does; `value` may have any floating type, and float32 comes out.

    Raises:
        ValueError: the number of channels is no power of two.
    """
    batch, positions, heads, channels = value.shape
    if channels & (channels - 1):
        raise ValueError(f"{channels} channels are no power of two")
    begins = [0]
    for height, width in shapes:
        begins.append(begins[-1] + height * width)
    levels = torch.tensor([(*shape, begin) for shape, begin in zip(shapes, begins, strict=False)])
    if value.is_cuda:
        levels = levels.pin_memory().to(value.device, non_blocking=True)
    queries, points = locations.shape[1], locations.shape[4]
    sums = value.new_empty((batch, queries, heads * channels), dtype=torch.float32)
    _sample[(batch * queries * heads,)](
        value.contiguous(), levels, locations.contiguous(), weights.contiguous(), sums, positions, queries,
        heads, channels, len(shapes), points, num_warps=1,
    )  # fmt: skip
    return sums
