"""Writes a shard: first its tar, then its index. The same records always give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.records import INDEX_SCHEMA, MEMBERS, SCHEMA_VERSION, ImageRecord, Shard
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.storage import Folder

TOTALS = ("images", "ok", "empty", "failed", "tags", "regions")
"""The names of a shard's counts: all images, images of each status, tags, regions."""


def write_shard(shard: Shard, folder: Folder, identity: str) -> Counter[str]:
    """Write a shard with its finished rows into a run's folder, and return its counts by the names in `TOTALS`.

    Failed images are only in the index. The index also has `identity`, the `Run.identity` of the run.
    """
    tar_name, index_name = f"{shard.name}.tar", f"{shard.name}.parquet"
    index = [record.index_row() for record in shard.rows]
    position = {record.key: row for row, record in enumerate(shard.rows)}
    with folder.commit(tar_name) as partial:
        with partial.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for record in _richest_first([record for record in shard.rows if record.status != "failed"]):
                index[position[record.key]].update(_add_sample(tar, record))
        with partial.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = partial.stat().st_size
        if folder.has(index_name):  # an old index must never be beside a new tar
            folder.delete(index_name)
    totals = count(shard)
    facts = {"schema_version": str(SCHEMA_VERSION), "run": identity, "tar_sha256": digest, "tar_bytes": str(size)}
    schema = INDEX_SCHEMA.with_metadata(facts | {"totals": json.dumps(totals, sort_keys=True), "seal": UNSEALED})
    with folder.commit(index_name) as partial:
        pq.write_table(pa.Table.from_pylist(index, schema), partial, compression="zstd")
        seal(partial)
    return totals


def count(shard: Shard) -> Counter[str]:
    """Return a shard's counts by the names in `TOTALS`."""
    totals = Counter(dict.fromkeys(TOTALS, 0))
    totals["images"] = len(shard.rows)
    for record in shard.rows:
        totals[record.status] += 1
        totals["tags"] += len(record.tags)
        totals["regions"] += len(record.regions)
    return totals


def _richest_first(records: list[ImageRecord]) -> list[ImageRecord]:
    """Return the records in plan order, but the record with the fewest empty lists first. Hugging Face `datasets`
    infers types from the first samples, and can't infer the type of an empty list."""

    def filled(record: ImageRecord) -> int:
        alternates = any(region.alternates for region in record.regions)
        return 8 * alternates + 4 * bool(record.regions) + 2 * bool(record.tags) + bool(record.conversations)

    best = max(records, key=filled, default=None)
    return sorted(records, key=lambda record: record is not best)  # keeps the order of the others


def _add_sample(tar: tarfile.TarFile, record: ImageRecord) -> dict[str, int | str]:
    """Append the four members of an image to the tar; return their offsets and sizes, and one sha256 over all four."""
    assert record.coverage is not None and record.embeds is not None, "patchify fills these for every image"
    contents = {
        "image": record.data,
        "json": record.to_json(),
        "masks": _npy(record.coverage),
        "embeds": _npy(record.embeds),
    }
    digest = hashlib.sha256()
    positions: dict[str, int] = {}
    for member, content in contents.items():
        # TarInfo's defaults make the bytes reproducible: no time, no owner, always the same mode.
        info = tarfile.TarInfo(f"{record.key}.{MEMBERS[member]}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        positions |= {f"{member}_at": tar.offset - padded, f"{member}_bytes": len(content)}
        digest.update(content)
    return positions | {"sha256": digest.hexdigest()}


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
