"""Deformable attention's sum over sampled points (arXiv 2010.04159, equation 3), without a tensor of the samples.

transformers samples all levels (resolutions) with `grid_sample`, and keeps the samples and their products with the
weights: gigabytes in each layer at full size, which a GPU has to write and to read again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_pipeline.console import note


class FusedSampling(nn.Module):
    """Replaces transformers' `MultiScaleDeformableAttention`, with the same signature, and computes in float32.

    On a GPU, one Triton kernel does all the work, see `pad_pipeline.stages.dino.kernel`. Elsewhere, one `embedding_bag`
    gathers the four pixels around each point, and sums them with their weights.
    """

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Return the weighted sums, float32 `[B, queries, heads * channels]`.

        Args:
            value: `[B, positions of all levels, heads, channels]`.
            value_spatial_shapes_list: height and width of each level.
            sampling_locations: `[B, queries, heads, levels, points, 2]`, x and y in fractions of the level.
            attention_weights: `[B, queries, heads, levels, points]`.
            value_spatial_shapes, level_start_index, im2col_step: not used.
        """
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
        if kernel := _kernel(value.device, value.shape[-1]):
            sums: Tensor = kernel(value, shapes, sampling_locations.float(), attention_weights.float())
            return sums
        return sample(value.float(), shapes, sampling_locations.float(), attention_weights.float())


def sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum float32 tensors as `FusedSampling.forward` does, one image at a time, which needs less memory."""
    return torch.stack([_sample(image, shapes, *rest) for image, *rest in zip(value, locations, weights, strict=True)])


def _sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over the points of one image. A pixel outside its level is 0.

    All tensors are `[queries, heads, levels * points]`, because PyTorch is slow if the last dimension is short.
    """
    queries, heads, _, points, _ = locations.shape
    begins = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
    facts = torch.tensor([(width, height, begin) for (height, width), begin in zip(shapes, begins, strict=True)])
    of_points = facts.to(value.device, value.dtype).repeat_interleave(points, 0).unbind(1)
    (xs, x_shares), (ys, y_shares) = (
        _neighbors(locations[..., axis].flatten(2) * edge - 0.5, edge - 1) for axis, edge in enumerate(of_points[:2])
    )
    weights, (width, _, begin) = weights.flatten(2), of_points
    head = torch.arange(heads, device=value.device).view(-1, 1)
    rows, shares = [], []
    for y, y_share in zip(ys, y_shares, strict=True):
        line, of_line = y * width + begin, weights * y_share
        for x, x_share in zip(xs, x_shares, strict=True):
            rows.append(((line + x) * heads + head).to(torch.int32))
            shares.append(of_line * x_share)
    sums = F.embedding_bag(
        torch.stack(rows, 2).view(queries * heads, -1), value.flatten(0, 1), mode="sum",
        per_sample_weights=torch.stack(shares, 2).view(queries * heads, -1),
    )  # fmt: skip
    return sums.view(queries, -1)


def _neighbors(at: Tensor, last: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the two pixels next to each place on an axis, and their shares; a share is 0 outside 0..`last`."""
    low = at.nan_to_num().floor()  # a NaN stays in the shares, and is no index
    beyond = at - low
    pixels = [low.clamp(min=0).minimum(last), (low + 1).clamp(min=0).minimum(last)]
    shares = [(1 - beyond) * (pixels[0] == low), beyond * (pixels[1] == low + 1)]
    return pixels, shares


_tried: dict[tuple[torch.device, int], Any] = {}
"""Device and number of channels -> the kernel; None where it can't be used."""


def _kernel(device: torch.device, channels: int) -> Any:
    """Return the Triton kernel, or None on a CPU and where it can't be used, which a line on the screen says once."""
    if device.type != "cuda":
        return None
    if (device, channels) not in _tried:
        _tried[device, channels] = None
        try:
            from pad_pipeline.stages.dino.kernel import sample_on_gpu

            drawn = [
                torch.rand(1, *shape, device=device) for shape in ((5, 2, channels), (3, 2, 1, 4, 2), (3, 2, 1, 4))
            ]
            value, *of_points = drawn
            for given in (value, value.bfloat16()):
                wanted = sample(given.float(), [(1, 5)], *of_points)
                if not torch.allclose(sample_on_gpu(given, [(1, 5)], *of_points), wanted, atol=1e-5):
                    raise ValueError("its numbers are wrong")
            _tried[device, channels] = sample_on_gpu
        except Exception as error:  # a missing or failing compiler: each raises another class
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            note(f"The detector runs without its Triton kernel, which can't be used here ({why}). It is slower.")
    return _tried[device, channels]
