"""Runs of synthetic images for benchmarks of scale: real shards, or only their indexes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.plan import PLAN_NAME, write_plan
from pad_pipeline.records import SCHEMA_VERSION, ImageRecord, Planned, Region, Shard, Tag, shard_name
from pad_pipeline.shards.rows import columns_of, stored_rows
from pad_pipeline.shards.run import Run
from pad_pipeline.shards.seal import seal
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.sources.base import Tally
from pad_pipeline.storage import Folder

REGIONS, WIDTH, HEIGHT, LLM_WIDTH, SHARD = 4, 500, 375, 4096, 512
VIEW = View(size=336, patch=14, fit="pad")


class MadeImages:
    """A source of images that exist only in the shards."""

    origin = root = ""

    def __init__(self, images: int) -> None:
        self.images, self.counts = images, Tally()

    def __iter__(self) -> Iterator[Planned]:
        for number in range(self.images):
            name = f"{number // 1000:06d}/{number:012d}"
            yield Planned(name, f"{name}.jpg", f"a photograph of something on a table, number {number}")


def write_run(folder: Path, shards: int) -> None:
    """Write a finished run of `shards` shards with 512 images each: JPEGs of 500 x 375 pixels with four regions."""
    _write_facts(folder, shards)
    identity, models = Run.read(Folder(folder)).identity, _records(np.random.default_rng(0))
    numbers = iter(MadeImages(shards * SHARD))
    for shard in range(shards):
        rows = []
        for row in range(SHARD):
            image, model = next(numbers), models[row % len(models)]
            record = ImageRecord(image.id, image.source, image.caption, key=image.id.replace("/", "_"))
            for name in ("data", "format", "width", "height", "tags", "regions", "coverage", "embeds"):
                setattr(record, name, getattr(model, name))
            rows.append(record)
        write_shard(Shard(shard, rows), Folder(folder), identity)


def write_indexes(folder: Path, shards: int, like: Path) -> None:
    """Write the plan, run.json and the indexes of a run, with empty tars. The rows are those of the first shard in
    `like`, with keys of their own."""
    _write_facts(folder, shards)
    first = pq.read_table(like / f"{shard_name(0)}.parquet", use_threads=False)
    for number in range(shards):
        keys = pc.binary_join_element_wise(first["key"], f"{number:06d}", "-")
        path = folder / f"{shard_name(number)}.parquet"
        pq.write_table(first.set_column(0, first.schema.field(0), keys), path, compression="zstd")
        seal(path)
        (folder / f"{shard_name(number)}.tar").touch()


def write_names(folder: Path, shards: int, like: Path) -> None:
    """Write run.json, the file with all rows, and empty files with the names of indexes and tars."""
    _write_facts(folder, shards)
    for number in range(shards):
        for ending in ("tar", "parquet"):
            (folder / f"{shard_name(number)}.{ending}").touch()
    first = pq.read_table(like / f"{shard_name(0)}.parquet", use_threads=False)

    def tables() -> Iterator[pa.Table]:
        return (columns_of({number: first}) for number in range(shards))

    stored_rows(Folder(folder), Run.read(Folder(folder)), tables, say=lambda text: None)


def _write_facts(folder: Path, shards: int) -> None:
    folder.mkdir()
    facts = write_plan(MadeImages(shards * SHARD), folder / PLAN_NAME, SHARD, "names")
    Run(
        schema_version=SCHEMA_VERSION, kind="build", images=facts.images, shards=shards, shard_size=SHARD, counts={},
        view=VIEW, embedding_width=LLM_WIDTH, settings={"decode": {}}, plan=facts.seal,
        fingerprints={"inputs": facts.digest, "code": hashlib.sha256().hexdigest()},
    ).write(Folder(folder))  # fmt: skip


def _records(chance: np.random.Generator) -> list[ImageRecord]:
    """Return 16 finished images, of which the made runs consist."""
    found = []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(16):
        small = Image.fromarray(chance.integers(0, 256, (48, 64, 3), np.uint8))
        pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        pixels = (pixels + chance.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=85)
        regions, coverage = [], []
        for region in range(REGIONS):
            x, y, a, b = chance.uniform((80, 80, 20, 20), (WIDTH - 80, HEIGHT - 80, 80, 80))
            edge = 1 + 0.1 * np.sin(7 * np.arctan2(rows - y, columns - x))
            mask = (((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < edge).astype(np.uint8)
            rle = coco_mask.encode(np.asfortranarray(mask))
            box = (x - a, max(y - b, 0.0), min(x + a, float(WIDTH)), min(y + b, float(HEIGHT)))
            label = f"thing {int(chance.zipf(1.5)) % 4000}-{region}"
            text = {"size": rle["size"], "counts": rle["counts"].decode()}
            regions.append(Region(label, box, 0.4 + 0.1 * region, 0.3, rle=text, predicted_iou=0.9))
            coverage.append(VIEW.coverage(mask))
        tags = [Tag(region.label, region.score, ["tagger"]) for region in regions] * 2
        record = ImageRecord(
            str(number), str(number), key=str(number), data=stream.getvalue(), format="JPEG", width=WIDTH,
            height=HEIGHT, tags=tags, regions=regions, coverage=np.stack(coverage),
        )  # fmt: skip
        record.embeds = chance.normal(size=(len(record.labels), LLM_WIDTH)).astype(np.float16)
        found.append(record)
    return found
