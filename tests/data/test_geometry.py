"""Coverage and views: the bugs caught here are half-patch shifts, swapped axes, crop for pad, and wrong roundings."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from pad_pipeline.geometry import Fit, View, select_patches

SIZES = [(640, 480), (480, 640), (427, 640), (641, 333), (336, 336), (335, 337), (50, 37), (1, 1), (900, 31), (100, 1)]


def placed(view: View, width: int, height: int) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Scale and offset from original pixels to view pixels, x then y, written down from the reference transforms:
    view x = x * scale_x + offset_x."""
    size = view.size
    if view.fit == "stretch":
        return Fraction(size, width), Fraction(0), Fraction(size, height), Fraction(0)
    if view.fit == "pad":
        square = max(width, height)
        scale = Fraction(size, square)
        return scale, (square - width) // 2 * scale, scale, (square - height) // 2 * scale
    short = min(width, height)
    new_width = size if width == short else int(size * width / height)
    new_height = size if height == short else int(size * height / width)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return Fraction(new_width, width), Fraction(-left), Fraction(new_height, height), Fraction(-top)


def exact_coverage(view: View, width: int, height: int, rectangle: tuple[int, int, int, int]) -> list[list[Fraction]]:
    """Share of each patch that a rectangle of whole pixels covers, in rational arithmetic and by intersection."""
    scale_x, offset_x, scale_y, offset_y = placed(view, width, height)
    x0, y0, x1, y1 = rectangle
    left, right = x0 * scale_x + offset_x, x1 * scale_x + offset_x
    top, bottom = y0 * scale_y + offset_y, y1 * scale_y + offset_y
    patch = view.patch

    def overlap(low: Fraction, high: Fraction, cell: int) -> Fraction:
        return max(Fraction(0), min(high, Fraction((cell + 1) * patch)) - max(low, Fraction(cell * patch)))

    cells = range(view.grid)
    return [[overlap(left, right, j) * overlap(top, bottom, i) / patch**2 for j in cells] for i in cells]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_coverage_of_a_rectangle_is_exact(data: st.DataObject) -> None:
    """Catches any shift, swap of axes or rounding of the grid: compared with rational arithmetic, to the last unit."""
    fit: Fit = data.draw(st.sampled_from(["crop", "pad", "stretch"]))
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    view = View(size=data.draw(st.sampled_from([28, 42, 70])), patch=14, fit=fit)
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    expected = [
        [0 if not share else max(1, int(share * 255 + Fraction(1, 2))) for share in row]
        for row in exact_coverage(view, width, height, (x0, y0, x1, y1))
    ]
    assert view.coverage(mask).tolist() == expected


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        # 640 x 480 -> 448 x 336, crop 56 at the left: x' = 0.7 x - 56. The rectangle is 56..112 by 28..56 there.
        ("crop", (slice(2, 4), slice(4, 8))),
        # 640 x 640 with 80 above: x' = .525 x, y' = .525 (y + 80): 84..126 by 63..84.
        ("pad", None),
    ],
)
def test_known_rectangle_lands_where_it_should(fit: Fit, expected: tuple[slice, slice] | None) -> None:
    """A hand-computed case on a landscape photograph; would catch a wrong crop offset and x/y swaps."""
    mask = np.zeros((480, 640), bool)
    mask[40:80, 160:240] = True
    coverage = View(fit=fit).coverage(mask)
    if expected is not None:
        truth = np.zeros((24, 24), np.uint8)
        truth[expected] = 255
        assert (coverage == truth).all()
    else:
        assert coverage[4, 6] == 128  # patch rows 56..70: half of it, from 63 on
        assert coverage[5, 6:9].tolist() == [255, 255, 255]
        assert coverage.astype(int).sum() == 3 * 128 + 3 * 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_whole_image_fills_crop_and_stretch(fit: Fit, size: tuple[int, int]) -> None:
    """Every patch of a crop or stretch shows image; a pad's share of image is its aspect. Odd and tiny sizes."""
    width, height = size
    coverage = View(fit=fit).coverage(np.ones((height, width), bool))
    if fit == "pad":
        assert abs(coverage.mean() / 255 - min(size) / max(size)) < 0.01
    else:
        assert (coverage == 255).all()


def test_a_region_smaller_than_a_patch_survives() -> None:
    """One pixel of a large photograph still has coverage 1; a rounding to 0 would lose the region."""
    mask = np.zeros((2000, 2000), bool)
    mask[1000, 1000] = True
    coverage = View().coverage(mask)
    assert coverage.max() == 1
    assert (coverage > 0).sum() == 1


@pytest.mark.parametrize("size", [size for size in SIZES if max(size) < 40 * min(size)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_view_equals_the_reference_processors(fit: Fit, size: tuple[int, int]) -> None:
    """Pixel for pixel what CLIP's (crop) and LLaVA's (pad) processors of transformers give the vision tower."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean = [0.48145466, 0.4578275, 0.40821073]
    square = {"height": 336, "width": 336}
    kind = {"crop": CLIPImageProcessorPil, "pad": LlavaImageProcessorPil}[fit]
    options = {"do_pad": True} if fit == "pad" else {}
    processor = kind(size={"shortest_edge": 336}, crop_size=square, do_rescale=False, do_normalize=False, **options)
    expected = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    red, green, blue = (int(255 * channel) for channel in mean)
    found = np.asarray(View(fit=fit).apply(image, (red, green, blue)))
    assert (found == expected).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(640, 480), (333, 641), (301, 300)])
def test_mask_and_image_go_through_the_same_view(fit: Fit, size: tuple[int, int]) -> None:
    """Coverage equals the mean of the mask seen as an image, within what bicubic filtering blurs: catches a view that
    cuts masks in another place than images (half a patch is 50 units here)."""
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[height // 5 : height // 2, width // 3 : width // 2] = True
    view = View(fit=fit)
    seen = np.asarray(view.apply(Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)), (0, 0, 0)))
    means = seen[..., 0].reshape(24, 14, 24, 14).mean((1, 3))
    assert np.abs(means - view.coverage(mask)).max() < 12


def test_view_refuses_patches_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="smaller than patch"):
        View(size=14, patch=15)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(640, 480), (384, 384), (301, 517)])
def test_patches_that_do_not_fill_the_view_cover_its_upper_left_pixels(fit: Fit, size: tuple[int, int]) -> None:
    """SigLIP so400m: 27 x 27 patches of the upper left 378 of 384 pixels. Catches patches that are spread over the
    whole square, and a grid in its center (3 pixels off, which is 55 units here at an edge)."""
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[height // 5 : height // 2, width // 3 : width // 2] = True
    view = View(size=384, patch=14, fit=fit)
    assert (view.grid, view.covered) == (27, 378)
    assert view.grid_text == "27 x 27 patches of 14 pixels, in its upper left 378 x 378 pixels"
    seen = np.asarray(view.apply(Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)), (0, 0, 0)))
    means = seen[:378, :378, 0].reshape(27, 14, 27, 14).mean((1, 3))
    assert np.abs(means - view.coverage(mask)).max() < 12
    whole = np.ones((height, width), bool)
    whole[: height * 383 // 384, : width * 383 // 384] = False
    if fit == "stretch":  # the last pixel of the view is in no patch
        assert not view.coverage(whole).any()


def test_patch_rules_by_hand() -> None:
    """A large region, one with no patch above half (31% of real objects), one that the view does not show: under `half`
    the second vanished, and with it every small thing of the dataset."""
    coverage = np.array([[[255, 128], [127, 0]], [[1, 90], [90, 0]], [[0, 0], [0, 0]]], np.uint8)
    expected = {
        "soft": coverage.tolist(),
        "any": [[[255, 255], [255, 0]], [[255, 255], [255, 0]], [[0, 0], [0, 0]]],
        "half": [[[255, 255], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]],
        "argmax": [[[255, 255], [0, 0]], [[0, 255], [255, 0]], [[0, 0], [0, 0]]],
    }
    for rule, wanted in expected.items():
        found = select_patches(coverage, rule)  # type: ignore[arg-type]
        assert found.dtype == np.uint8
        assert found.tolist() == wanted, rule
        assert select_patches(coverage[:0], rule).shape == (0, 2, 2)  # type: ignore[arg-type]
