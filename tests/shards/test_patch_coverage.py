"""The patches' coverage by a mask of any form keeps its area and turns with the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pad_pipeline.geometry import View


@settings(max_examples=80, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.sampled_from(["crop", "pad", "stretch"]),
    st.sampled_from([14, 28, 56]),
)  # fmt: skip
def test_coverage_keeps_area_and_turns_with_the_image(mask: np.ndarray, fit: Any, size: int) -> None:
    """Of any mask, not of rectangles alone (see test_geometry). Catches x for y, an axis that runs backwards, and area
    that is lost or counted twice between patches."""
    view = View(size=size, patch=14, fit=fit)
    coverage = view.coverage(mask)
    assert coverage.dtype == np.uint8 and coverage.shape == (view.grid, view.grid)
    assert np.array_equal(view.coverage(mask.T), coverage.T)
    whole = view.coverage(np.ones_like(mask)).astype(int)
    rest = view.coverage(~mask).astype(int)
    assert np.abs(coverage + rest - whole).max() <= 1
    height, width = mask.shape
    axes = zip(view.axes(width, height), (width, height), strict=True)
    centered = all(2 * axis.origin + axis.cell * view.grid == axis.pixel * edge for axis, edge in axes)
    assert centered or fit != "stretch"
    if centered:  # an odd margin is cut by whole pixels, more on one side
        assert np.array_equal(view.coverage(mask[:, ::-1]), coverage[:, ::-1])
        assert np.array_equal(view.coverage(mask[::-1]), coverage[::-1])
    if fit != "crop":
        share = mask.mean() if fit == "stretch" else mask.sum() / max(mask.shape) ** 2
        assert abs(coverage.sum() / 255 - share * view.grid**2) <= view.grid**2 / 255
