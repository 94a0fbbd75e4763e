"""Makes the card of an image in a report: a small copy of the image, and its tags and regions as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.masks import decode_mask
from pad_pipeline.report.outline import outline
from pad_pipeline.shards.reader import Sample, ShardFolder

TOUCHED_BINS = 16
"""The number of bins for the coverage (1..255) of touched patches. Each bin is 16 wide."""


class Measure(NamedTuple):
    """The numbers of a region, for the statistics."""

    label: str
    score: float
    label_score: float
    predicted_iou: float
    covered: int
    """The sum of the coverage of all patches, in 255ths of a patch."""
    area: float
    """The share of the image that the mask covers, 0..1."""
    seen: float
    """The share of the view that the mask covers, 0..1."""


class Card(NamedTuple):
    """The card of one image."""

    data: dict[str, Any]
    """The data that the page shows."""
    text: str
    """`data` as JSON, see `as_script`."""
    image: bytes = b""
    """The small copy as a JPEG; empty for a failed image."""
    measures: Sequence[Measure] = ()
    touched: np.ndarray = np.zeros(TOUCHED_BINS, np.int64)
    """The number of patches that regions touch, by coverage: int64 `[TOUCHED_BINS]`."""

    def with_data(self, more: dict[str, Any]) -> Card:
        """Return the card with more data."""
        data = self.data | more
        return self._replace(data=data, text=as_script(data))


def make_card(shards: ShardFolder, name: str, row: dict[str, Any], edge: int) -> Card:
    """Make the card for `row` in the index of shard `name`; raise `UserError` if the shard is damaged. The long edge of
    the small copy has at most `edge` pixels."""
    data = {what: row[what] for what in ("key", "id", "source", "status", "stage", "reason")} | {"shard": name}
    if row["status"] == "failed":
        return Card(data, as_script(data))
    sample = shards.sample(name, row)
    try:
        image, _ = decode(sample.image, DecodeSettings.model_validate(shards.run.settings.get("decode", {})))
        image.thumbnail((edge, edge), Image.Resampling.BICUBIC, reducing_gap=2.0)
        small = io.BytesIO()
        image.save(small, "JPEG", quality=85)
        content, measures = content_of(sample, shards.run.view)
        data |= content
        text = as_script(data)
    except Exception as error:  # every exception here is caused by damaged bytes
        rule = f"{row['key']} in it is damaged ({type(error).__name__}: {error})"
        remedy = f"see `pad verify {shards.folder}` with `deep`"
        raise UserError("shards", f"{shards.folder}/{name}.tar", rule, remedy) from error
    touched = np.bincount(sample.coverage[sample.coverage > 0] >> 4, minlength=TOUCHED_BINS)
    return Card(data, text, small.getvalue(), measures, touched)


def as_script(value: Any) -> str:
    """Return JSON for an HTML `<script>`: ASCII, with `<`, `>` and `&` escaped. NaN and infinity raise `ValueError`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_of(sample: Sample, view: View) -> tuple[dict[str, Any], list[Measure]]:
    """Return the data of a sample for the page, and the numbers of its regions."""
    meta = sample.meta
    width, height = int(meta["width"]), int(meta["height"])
    x, y = view.axes(width, height)
    regions, measures = [], []
    for region, coverage in zip(meta["regions"], sample.coverage, strict=True):
        mask = decode_mask(region["rle"], width, height)
        found = Measure(
            region["label"],
            float(region["score"]),
            float(region["label_score"]),
            float(region["predicted_iou"]),
            int(coverage.sum()),
            np.count_nonzero(mask) / mask.size,
            float(coverage.mean()) / 255,
        )
        measures.append(found)
        regions.append(
            {
                "label": region["label"],
                # All digits, because thresholds apply to these numbers.
                "score": found.score,
                "label_score": found.label_score,
                "iou": found.predicted_iou,
                "covered": found.covered,
                "alternates": [[str(other["label"]), _rounded(other["score"])] for other in region["alternates"]],
                "crowd": region["crowd"],
                "box": [round(float(edge), 1) for edge in region["box"]],
                "area": _rounded(found.area),
                "path": outline(mask),
                "patches": _patches(coverage),
            }
        )
    content = {
        "width": width,
        "height": height,
        "caption": meta["caption"] or "\n".join(str(turn["value"]) for turn in meta["conversations"]),
        "tags": [[str(tag["label"]), _rounded(tag["score"])] for tag in meta["tags"]],
        # The patch grid in pixels of the upright original: left and upper edge, width and height of a patch. The grid
        # of a crop begins inside the image, that of a padded image outside.
        "grid": [x.origin / x.pixel, y.origin / y.pixel, x.cell / x.pixel, y.cell / y.pixel],
        "regions": regions,
    }
    return content, measures


def _patches(coverage: np.ndarray) -> list[Any]:
    """Return the part of the patch grid that a region touches: first row, first column, rows, columns, and the coverage
    row by row in base64. The list is empty for a region outside the view."""
    if not coverage.any():
        return []
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    part = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [int(rows[0]), int(columns[0]), *part.shape, base64.b64encode(part.tobytes()).decode()]


def _rounded(value: float) -> float:
    """Round to four digits, to keep the report small."""
    return float(f"{float(value):.4g}")
