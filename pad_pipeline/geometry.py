"""The view: the square that the vision encoder sees of an image; and how much of each patch in it a mask covers.

Along each axis, pixel k of the original spans [k*pixel, (k+1)*pixel], and cell j of the patch grid spans
[origin + j*cell, origin + (j+1)*cell]. The unit is chosen for each fit so that `pixel`, `cell` and `origin` are whole
numbers. So the coverage of a cell is a ratio of integers, and exact.
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
"""The rule for which patches belong to a region.

`soft`: every patch, weighted by its coverage. `any`: patches that the region touches. `half`: patches that the region
covers by half or more (31% of real objects have no such patch on a 24 x 24 grid). `argmax`: as `half`; a region without
such a patch gets the patches with its highest coverage.
"""
HALF = 128
"""The coverage, of 255, from which a patch counts as half covered."""


class Axis(NamedTuple):
    """Along one axis, in a common unit: the length of a pixel and of a cell, and where the first cell begins."""

    pixel: int
    cell: int
    origin: int


class View(BaseModel):
    """The square that the vision encoder sees of an image, with its patch grid."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: int = Field(336, gt=0, le=4096)
    """Edge of the square in pixels (`paper`, `plus` and `best`: 336, `miniature`: 112)."""
    patch: int = Field(14, gt=0)
    """Edge of a patch in pixels of the square (`paper`, `plus` and `best`: 14, `miniature`: 8). If `size` is no
    multiple of it, the last pixels on the right and at the bottom belong to no patch, as in the towers themselves:
    SigLIP so400m takes 384 pixels in patches of 14, which are 27 x 27 patches of the upper left 378 x 378 pixels."""
    fit: Fit = "crop"
    """How an image becomes the square. `crop`: its short edge is resized to `size`, then the center is cut out (as in
    LLaVA-1.5's training stage 1). `pad`: it is padded to a square with the mean color, then resized (as in stage 2).
    `stretch`: both edges are resized to `size`."""

    @model_validator(mode="after")
    def _whole_patches(self) -> View:
        if self.size < self.patch:
            raise ValueError(f"size {self.size} is smaller than patch {self.patch}")
        if self.grid > 256:
            raise ValueError(f"a grid of {self.grid} x {self.grid} patches is larger than any encoder's (256 x 256)")
        return self

    @property
    def grid(self) -> int:
        """The number of patches along one edge: 336 / 14 = 24. A rest that fills no patch does not count."""
        return self.size // self.patch

    @property
    def covered(self) -> int:
        """The edge of the part of the square, from its upper left corner, that the patches fill: 378 pixels of 384."""
        return self.grid * self.patch

    @property
    def grid_text(self) -> str:
        """The patch grid in words, with the part of the square that it fills where that is not the whole square."""
        text = f"{self.grid} x {self.grid} patches of {self.patch} pixels"
        return (
            text if self.covered == self.size else f"{text}, in its upper left {self.covered} x {self.covered} pixels"
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of an image after the resize, before the crop.

        The long edge is truncated, not rounded, as `get_resize_output_image_size` of transformers does.
        """
        if self.fit != "crop":
            return self.size, self.size
        short, long = min(width, height), int(self.size * max(width, height) / min(width, height))
        return (self.size, long) if width == short else (long, self.size)

    def axes(self, width: int, height: int) -> tuple[Axis, Axis]:
        """Return the x axis and the y axis for an image of `width` x `height` pixels."""
        square, resized = max(width, height), self.resized(width, height)

        def axis(old: int, new: int) -> Axis:
            if self.fit == "pad":  # the offset is rounded down to whole pixels, as in LLaVA's expand2square
                return Axis(self.size, self.patch * square, -self.size * ((square - old) // 2))
            return Axis(new, self.patch * old, (new - self.size) // 2 * old)

        return axis(width, resized[0]), axis(height, resized[1])

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """Return how much of each patch a mask covers, for a mask of the upright original, bool or 0/1 `[H, W]`.

        The result is uint8 `[grid, grid]`: 255 x covered area / area of the patch, rounded half up, but at least 1 for
        a patch that the mask touches, so that a tiny region never vanishes.
        """
        import numpy as np

        height, width = mask.shape
        over_x, over_y, area = _overlaps(self, width, height)
        # float64 holds these whole numbers exactly (they are below 2**53), and multiplies far faster than int64.
        covered = (over_y @ mask.astype(np.float64) @ over_x.T).astype(np.int64)
        return np.where(covered > 0, np.maximum((510 * covered + area) // (2 * area), 1), 0).astype(np.uint8)

    def apply(self, image: Image.Image, fill: tuple[int, int, int], resample: int = 3) -> Image.Image:
        """Turn an upright RGB image into the square.

        `fill` is the RGB color of the padding, 0..255. LLaVA uses int(255 * mean) of the encoder's mean. `resample` is
        the number of Pillow's filter for the resize; 3, bicubic, is that of CLIP's and LLaVA's processors.
        """
        from PIL import Image

        if self.fit == "pad" and image.width != image.height:
            square = max(image.size)
            canvas = Image.new("RGB", (square, square), fill)
            canvas.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
            image = canvas
        width, height = self.resized(*image.size)
        image = image.resize((width, height), Image.Resampling(resample))
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def select_patches(coverage: np.ndarray, rule: PatchRule) -> np.ndarray:
    """Return how much each patch belongs to each region, from the regions' `View.coverage`, uint8 `[R, grid, grid]`.

    The result has the same shape and type: 0..255 for the rule `soft`, 0 or 255 for the others. A region outside the
    view has no patch under any rule.
    """
    import numpy as np

    if rule == "soft":
        return coverage
    chosen = coverage > 0 if rule == "any" else coverage >= HALF
    if rule == "argmax":
        most = coverage.max((1, 2), keepdims=True, initial=0)
        chosen |= (coverage == most) & (most > 0) & (most < HALF)
    return np.where(chosen, np.uint8(255), np.uint8(0))


@lru_cache(maxsize=64)
def _overlaps(view: View, width: int, height: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the length of the overlap of each cell with each pixel along x, float64 `[grid, width]`, and along y,
    float64 `[grid, height]`; and the area of a cell."""
    import numpy as np

    def overlap(axis: Axis, length: int) -> np.ndarray:
        pixels = np.arange(length, dtype=np.int64) * axis.pixel
        cells = (np.arange(view.grid, dtype=np.int64) * axis.cell + axis.origin)[:, None]
        ends = np.minimum(pixels + axis.pixel, cells + axis.cell)
        lengths: np.ndarray = np.maximum(ends - np.maximum(pixels, cells), 0)
        return lengths.astype(np.float64)

    x, y = view.axes(width, height)
    return overlap(x, width), overlap(y, height), x.cell * y.cell
