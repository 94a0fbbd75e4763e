"""Where an image's pixels land on the vision encoder's patch grid.

One affine rule per axis covers the three fits. Pixel k of the original spans [k*pixel, (k+1)*pixel] and cell j of the
grid spans [origin + j*cell, origin + (j+1)*cell], in a unit that makes all three whole numbers. So the coverage of a
cell by a mask is a ratio of integers, and exact.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:  # the command line reads the fields of `View`, and does not wait for NumPy and Pillow
    import numpy as np
    from PIL import Image

Fit = Literal["crop", "pad", "stretch"]
PatchRule = Literal["soft", "any", "half", "argmax"]
"""Which patches belong to a region: `soft`, each by the share that the region covers of it; `any`, each that it
touches; `half`, each that it covers half or more of (for 31% of real objects, none of a 24 x 24 grid); `argmax`, the
same, and where that is none the patch or patches that it covers most of, so that at least one remains."""
HALF = 128
"""Of 255: the coverage from which half of a patch is covered."""


class Axis(NamedTuple):
    """Pixel and cell widths and the first cell's edge along one axis, in one common unit."""

    pixel: int
    cell: int
    origin: int


class View(BaseModel):
    """What the vision encoder sees of an image, and the patch grid over it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: int = Field(336, gt=0, le=4096)
    """Edge of the square that goes into the vision encoder, in pixels (`paper` and `plus`: 336, `miniature`: 112)."""
    patch: int = Field(14, gt=0)
    """Edge of one patch, in pixels of the view (`paper` and `plus`: 14, `miniature`: 8)."""
    fit: Fit = "crop"
    """How an image becomes a square. `crop`: its shortest edge is brought to `size`, then the center is cut out
    (LLaVA-1.5's stage 1). `pad`: it is padded to a square with the mean color first (stage 2). `stretch`: both edges
    are brought to `size`."""

    @model_validator(mode="after")
    def _whole_patches(self) -> View:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of patch {self.patch}")
        if self.grid > 256:
            raise ValueError(f"a grid of {self.grid} x {self.grid} patches is larger than any encoder's (256 x 256)")
        return self

    @property
    def grid(self) -> int:
        """Patches along one edge: 336 / 14 = 24."""
        return self.size // self.patch

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize and before the crop.

        The long edge is truncated, not rounded, as `get_resize_output_image_size` of transformers does.
        """
        if self.fit != "crop":
            return self.size, self.size
        short, long = min(width, height), int(self.size * max(width, height) / min(width, height))
        return (self.size, long) if width == short else (long, self.size)

    def axes(self, width: int, height: int) -> tuple[Axis, Axis]:
        """The x and the y axis for an image of `width` x `height` pixels."""
        if self.fit == "pad":
            square = max(width, height)
            # Whole-pixel offsets by integer division, as LLaVA's expand2square places the image.
            offsets = (square - width) // 2, (square - height) // 2
            x, y = (Axis(self.size, self.patch * square, -self.size * offset) for offset in offsets)
            return x, y
        resized = self.resized(width, height)
        x, y = (
            Axis(new, self.patch * old, (new - self.size) // 2 * old)
            for new, old in zip(resized, (width, height), strict=True)
        )
        return x, y

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """How much of each patch a mask covers.

        Args:
            mask: `[H, W]` bool or 0/1, at the size of the upright original.

        Returns:
            uint8 `[grid, grid]`: 255 x covered area / area of the patch, rounded half up, and at least 1 where
            anything is covered, so that a region smaller than a patch never vanishes.
        """
        import numpy as np

        height, width = mask.shape
        over_x, over_y, area = _overlaps(self, width, height)
        # float64 holds these whole numbers exactly (below 2**53) and multiplies far faster than int64.
        covered = (over_y @ mask.astype(np.float64) @ over_x.T).astype(np.int64)
        return np.where(covered > 0, np.maximum((510 * covered + area) // (2 * area), 1), 0).astype(np.uint8)

    def apply(self, image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
        """The view of an upright RGB image: `size` x `size`, bicubic, as CLIP's and LLaVA's processors make it.

        Args:
            image: the upright RGB image.
            fill: the color beside the image under `pad`; LLaVA takes int(255 * mean) of the encoder's mean.
        """
        from PIL import Image

        if self.fit == "pad" and image.width != image.height:
            square = max(image.size)
            canvas = Image.new("RGB", (square, square), fill)
            canvas.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
            image = canvas
        width, height = self.resized(*image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def select_patches(coverage: np.ndarray, rule: PatchRule) -> np.ndarray:
    """How much each patch belongs to each region.

    Args:
        coverage: uint8 `[R, grid, grid]`, as stored.
        rule: what decides.

    Returns:
        uint8 of the same shape: 0..255 for `soft`, 0 or 255 for the others. A region that the view does not show has
        no patch under any rule.
    """
    import numpy as np

    if rule == "soft":
        return coverage
    if rule == "any":
        chosen = coverage > 0
    else:
        chosen = coverage >= HALF
        if rule == "argmax":
            most = coverage.max((1, 2), keepdims=True, initial=0)
            chosen |= (coverage == most) & (most > 0) & (most < HALF)
    return np.where(chosen, np.uint8(255), np.uint8(0))


@lru_cache(maxsize=64)
def _overlaps(view: View, width: int, height: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Overlap lengths `[grid, width]` and `[grid, height]` of cells with pixels, and the area of a cell."""
    x, y = view.axes(width, height)
    return _overlap(x, width, view.grid), _overlap(y, height, view.grid), x.cell * y.cell


def _overlap(axis: Axis, length: int, grid: int) -> np.ndarray:
    import numpy as np

    pixels = np.arange(length, dtype=np.int64) * axis.pixel
    cells = (np.arange(grid, dtype=np.int64) * axis.cell + axis.origin)[:, None]
    ends = np.minimum(pixels + axis.pixel, cells + axis.cell)
    return np.maximum(ends - np.maximum(pixels, cells), 0).astype(np.float64)
