"""The regions of a sample, looked at before pycocotools computes with their masks: shards can come from anybody."""

from __future__ import annotations

from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.masks import check_mask
from pad_pipeline.shards.reader import Sample


def checked_regions(sample: Sample) -> list[dict[str, Any]]:
    """The regions of a sample, each with a mask of the image's size.

    Raises:
        UserError: a mask is none.
    """
    for number, region in enumerate(sample.meta["regions"]):
        try:
            check_mask(region["rle"], sample.meta["width"], sample.meta["height"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            rule = f"it can't be used ({type(error).__name__}: {error})"
            raise UserError("shards", f"mask {number} of {sample.key}", rule, "see `pad verify` with `deep`") from error
    return sample.meta["regions"]
