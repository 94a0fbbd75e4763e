"""One image of a run as a report shows it: a small copy, and beside it all that was found, as JSON."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.masks import decode_mask
from pad_pipeline.report.outline import outline
from pad_pipeline.shards.reader import Sample, ShardFolder

TOUCHED_BINS = 16
"""The coverage of touched patches is counted in so many steps of 16."""


@dataclass
class Measure:
    """One region in numbers, for the statistics."""

    label: str
    score: float
    predicted_iou: float
    area: float
    """Share of the image that its mask covers."""
    seen: float
    """Share of the view that its mask covers."""


@dataclass
class Card:
    """One image of a run."""

    data: dict[str, Any]
    """What the page shows."""
    text: str
    """The same as JSON."""
    image: bytes = b""
    """JPEG; empty for an image that failed."""
    measures: list[Measure] = field(default_factory=list)
    touched: np.ndarray = field(default_factory=lambda: np.zeros(TOUCHED_BINS, np.int64))
    """int64 `[TOUCHED_BINS]`: patches that a region touches, by coverage."""


def make_card(shards: ShardFolder, name: str, row: dict[str, Any], edge: int) -> Card:
    """The card of one index row of shard `name`.

    Args:
        shards: where it is.
        name: the shard's.
        row: of its index.
        edge: the image's long edge is at most this long, in pixels.

    Raises:
        UserError: the shard is damaged.
    """
    data = {what: row[what] for what in ("key", "id", "source", "status", "stage", "reason")} | {"shard": name}
    if row["status"] == "failed":
        return Card(data, as_script(data))
    sample = shards.sample(name, row)
    try:
        image = _image(sample.image, shards.run.settings.get("decode", {}), edge)
        measures = [_measure(region, sample.coverage[n]) for n, region in enumerate(sample.meta["regions"])]
        data |= _found(sample, shards.run.view, measures)
        text = as_script(data)
    except Exception as error:  # outside bytes: whatever trips over them says what is wrong
        rule = f"{row['key']} in it is damaged ({type(error).__name__}: {error})"
        raise UserError(
            "shards", f"{shards.folder}/{name}.tar", rule, f"see `pad verify {shards.folder}` with `deep`"
        ) from error
    touched = np.bincount(sample.coverage[sample.coverage > 0] >> 4, minlength=TOUCHED_BINS)
    return Card(data, text, image, measures, touched)


def as_script(value: Any) -> str:
    """JSON that can stand in a script, even inside of HTML: ASCII, and nothing in it ends anything.

    Raises:
        ValueError: a number in it is none that JSON has.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def grid_of(view: View, width: int, height: int) -> list[float]:
    """The patch grid over an image: its left and upper edge, a patch's width and height, in pixels of the upright
    original. A crop's grid begins inside of the image, a padded one outside."""
    x, y = view.axes(width, height)
    return [x.origin / x.pixel, y.origin / y.pixel, x.cell / x.pixel, y.cell / y.pixel]


def _image(data: bytes, settings: dict[str, Any], edge: int) -> bytes:
    image, _ = decode(data, DecodeSettings.model_validate(settings))
    image.thumbnail((edge, edge), Image.Resampling.BICUBIC, reducing_gap=2.0)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return written.getvalue()


def _measure(region: dict[str, Any], coverage: np.ndarray) -> Measure:
    height, width = region["rle"]["size"]
    area = float(coco_mask.area(region["rle"])) / (width * height)
    return Measure(
        region["label"], float(region["score"]), float(region["predicted_iou"]), area, float(coverage.mean()) / 255
    )


def _found(sample: Sample, view: View, measures: list[Measure]) -> dict[str, Any]:
    meta = sample.meta
    width, height = int(meta["width"]), int(meta["height"])
    regions = []
    for region, coverage, measure in zip(meta["regions"], sample.coverage, measures, strict=True):
        regions.append(
            {
                "label": region["label"],
                "score": _short(region["score"]),
                "label_score": _short(region["label_score"]),
                "iou": _short(region["predicted_iou"]),
                "alternates": [[str(other["label"]), _short(other["score"])] for other in region["alternates"]],
                "crowd": region["crowd"],
                "box": [round(float(edge), 1) for edge in region["box"]],
                "area": _short(measure.area),
                "path": outline(decode_mask(region["rle"], width, height)),
                "patches": _patches(coverage),
            }
        )
    return {
        "width": width,
        "height": height,
        "caption": meta["caption"] or "\n".join(str(turn["value"]) for turn in meta["conversations"]),
        "tags": [[str(tag["label"]), _short(tag["score"])] for tag in meta["tags"]],
        "grid": grid_of(view, width, height),
        "regions": regions,
    }


def _patches(coverage: np.ndarray) -> list[Any]:
    """The part of the grid that a region touches: first row, first column, rows, columns, coverage in base64, row by
    row; empty where the view shows nothing of it."""
    if not coverage.any():
        return []
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    part = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [int(rows[0]), int(columns[0]), *part.shape, base64.b64encode(part.tobytes()).decode()]


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")
