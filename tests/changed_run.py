"""A copy of a run whose annotations differ, as if other models had made them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder


def changed_run(source: Path, target: Path, change: Callable[[ImageRecord], None]) -> Path:
    """Write the run `source` into the new folder `target`. `change` may change the tags and regions of each image that
    did not fail, and may fail it; label embeddings are zeros."""
    shards = open_shards(source)
    target.mkdir()
    shutil.copyfile(source / RUN_NAME, target / RUN_NAME)
    for number, name in enumerate(shards.names):
        records = []
        for row in shards.index(name):
            record = ImageRecord(row["id"], row["source"], key=row["key"])
            if row["status"] == "failed":
                record.fail(row["stage"], row["reason"])
            else:
                sample = shards.sample(name, row)
                record.restore(sample.meta)
                record.data = sample.image
                change(record)
            if record.status != "failed":
                record.status = "ok" if record.regions else "empty"
                view = shards.run.view
                coverage = [view.coverage(coco_mask.decode(region.rle)) for region in record.regions]
                record.coverage = np.array(coverage, np.uint8).reshape(-1, view.grid, view.grid)
                record.embeds = np.zeros((len(record.labels), shards.run.embedding_width), np.float16)
            records.append(record)
        write_shard(Shard(number, records), Folder(target), shards.run.identity)
    return target
