"""Masks on their way from the device to compressed COCO RLE."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from pad_pipeline.stages.rle import encode_mask, encode_runs, run_starts


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=40), elements=st.booleans(), fill=st.booleans()))
@settings(deadline=None)
def test_masks_from_the_device_are_encoded_as_pycocotools_does(masks: np.ndarray) -> None:
    """Column by column, as COCO has it, whatever the size and the first pixel: not one byte differs."""
    height, width = masks.shape[1:]
    for mask, starts in zip(masks, run_starts(torch.from_numpy(masks)).numpy(), strict=True):
        found = encode_runs(starts, width, height)
        assert found == encode_mask(mask) and found["size"] == [height, width]
        assert np.array_equal(coco_mask.decode(found).astype(bool), mask)
