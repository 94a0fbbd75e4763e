"""Checks the masks of a sample before pycocotools computes with them, because shards can come from anybody."""

from __future__ import annotations

from pad_pipeline.errors import UserError
from pad_pipeline.masks import check_mask
from pad_pipeline.records import RegionJson
from pad_pipeline.shards.reader import Sample


def checked_regions(sample: Sample) -> list[RegionJson]:
    """Return the regions of a sample; raise `UserError` if one has no valid mask of the image's size."""
    regions = sample.meta["regions"]
    for number, region in enumerate(regions):
        try:
            check_mask(region["rle"], sample.meta["width"], sample.meta["height"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            rule = f"it can't be used ({type(error).__name__}: {error})"
            raise UserError("shards", f"mask {number} of {sample.key}", rule, "see `pad verify` with `deep`") from error
    return regions
