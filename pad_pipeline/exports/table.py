"""Exports shards to a flat Parquet file with one row for each region: for DuckDB, pandas, Spark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from pad_pipeline.exports.samples import samples_by_shard
from pad_pipeline.exports.target import Target
from pad_pipeline.shards.reader import Sample, ShardFolder

NAME = "regions.parquet"
_NUMBER = pa.float32()
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("shard", "key", "id", "source")),
        *((name, pa.int32()) for name in ("image_width", "image_height", "region")),
        ("label", pa.string()),
        *((name, _NUMBER) for name in ("score", "label_score", "predicted_iou")),
        ("crowd", pa.bool_()),
        *((edge, _NUMBER) for edge in ("x0", "y0", "x1", "y1")),
        ("area", pa.int64()),
        ("patches", _NUMBER),
        ("alternates", pa.list_(pa.string())),
        ("rle", pa.string()),
    ]
)
"""The columns of the table.

`region` is the index of the region in its image. `x0` to `y1` are the box, in pixels of the upright original. `area` is
the area of the mask in pixels, and `patches` its area on the patch grid in patches. `rle` is the field `counts` of the
mask's compressed COCO RLE; the field `size` is `[image_height, image_width]`.
"""


def export_table(shards: ShardFolder, target: Target) -> Iterator[Counter[str]]:
    """Write `regions.parquet` with a row group for each shard, and yield the counts so far, as `export_coco` does."""
    counts: Counter[str] = Counter(images=0, regions=0)
    with target.file(NAME) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for name, samples in samples_by_shard(shards, counts, image=False):
            rows = [row for sample in samples for row in _rows(name, sample)]
            counts["regions"] += len(rows)
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            yield counts


def _rows(shard: str, sample: Sample) -> Iterator[dict[str, Any]]:
    meta = sample.meta
    image = {"shard": shard, "key": sample.key, "id": meta["id"], "source": meta["source"]}
    size = {"image_width": meta["width"], "image_height": meta["height"]}
    covered = sample.coverage.sum((1, 2), dtype=np.int64) / 255
    plain = ("label", "score", "label_score", "predicted_iou", "crowd")
    for number, region in enumerate(sample.checked_regions()):
        yield {
            **image,
            **size,
            **{name: value for name, value in region.items() if name in plain},
            **dict(zip(("x0", "y0", "x1", "y1"), region["box"], strict=True)),
            "region": number,
            "area": int(coco_mask.area(region["rle"])),
            "patches": float(covered[number]),
            "alternates": [other["label"] for other in region["alternates"]],
            "rle": region["rle"]["counts"],
        }
