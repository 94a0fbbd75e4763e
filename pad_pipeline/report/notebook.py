"""An annotated image that shows itself: short in a console, drawn in a notebook."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from PIL import Image

from pad_pipeline.choices import Status
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.masks import decode_mask
from pad_pipeline.records import RegionJson
from pad_pipeline.report.overlay import panels
from pad_pipeline.shards.reader import Sample


@dataclass(repr=False)
class Annotated(Sample):
    """A sample, and the view whose patch grid its coverage is on."""

    view: View = field(default_factory=View)
    status: Status = "ok"
    """`empty` if no region was found; `failed` if the image has no annotations, see `reason`."""
    reason: str = ""
    """Why the image failed."""

    @classmethod
    def of(cls, sample: Sample, view: View) -> Self:
        """Return a sample of a run with this view."""
        status: Status = "ok" if sample.meta["regions"] else "empty"
        return cls(sample.key, sample.image, sample.meta, sample.coverage, sample.embeds, view, status)

    @property
    def tags(self) -> dict[str, float]:
        """The tags and their scores, 0..1."""
        return {tag["label"]: tag["score"] for tag in self.meta["tags"]}

    @property
    def regions(self) -> list[RegionJson]:
        """The regions, with `label`, `score`, `box` (xyxy in pixels of the upright image), `rle` and more."""
        return self.meta["regions"]

    @property
    def masks(self) -> np.ndarray:
        """The masks of the regions at the size of the upright image, uint8 0 or 1 `[R, H, W]`."""
        width, height = self.meta["width"], self.meta["height"]
        masks = [decode_mask(region["rle"], width, height) for region in self.checked_regions()]
        return np.array(masks, np.uint8).reshape(len(masks), height, width)

    def open(self) -> Image.Image:
        """Return the upright image, RGB; raise `BadImage` for the bytes of an image that failed."""
        return decode(self.image, DecodeSettings())[0]

    def draw(self) -> Image.Image:
        """Draw the image with boxes, with masks, and with its patch grid."""
        return panels(self.open(), self.meta, self.coverage, self.view)

    def __repr__(self) -> str:
        if self.status == "failed":
            return f"<{self.key}: failed, {self.reason}>"
        return super().__repr__()

    def _repr_html_(self) -> str:
        """Return the drawing, for a notebook."""
        text = f"<p>{html.escape(repr(self))}</p>"
        if self.status == "failed":
            return text
        content = io.BytesIO()
        self.draw().save(content, "PNG")
        drawing = base64.b64encode(content.getvalue()).decode()
        return f'{text}<img alt="{html.escape(self.key)}" src="data:image/png;base64,{drawing}">'
