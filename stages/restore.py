"""Shards -> records: what an earlier run found in each image, taken over as it was written."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import lru_cache
from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.masks import check_mask
from pad_pipeline.records import ImageRecord, ShardRow
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.stages.base import Stage
from pad_pipeline.storage import is_url

INDEXES = 8
"""That are kept in memory: the images of a shard come from a few, one after another."""


class Stored(NamedTuple):
    """What a run knows of an image."""

    row: dict[str, Any]
    """Its index row."""
    data: bytes = b""
    """Its file; empty where it failed."""
    json: bytes = b""
    """Its `key.json`."""


class Restore(Stage[Stored, Stored]):
    """Reads back each image that `StoredSource` planned.

    No image is decoded. Instead the sha256 that was noted of the sample is compared: a byte that has changed since
    would be sealed anew, and never be found again.

    Args:
        root: folder or URL that the planned indexes are relative to.
    """

    name = "restore"

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root, self._lock = root, threading.Lock()
        self._folder = lru_cache(64)(ShardFolder)
        self._index = lru_cache(INDEXES)(lambda folder, name: self._folder(folder).index(name))

    def prepare(self, row: ImageRecord) -> Stored:
        """Its index row and, where it has not failed, its sample."""
        assert isinstance(row.place, ShardRow), "`StoredSource` plans these"
        file = row.place.file if is_url(row.place.file) else f"{self.root}/{row.place.file}"
        folder, _, index = file.rpartition("/")
        name = index.removesuffix(".parquet")
        with self._lock:  # else each thread would read the index for itself
            shards, rows = self._folder(folder), self._index(folder, name)
        if not (0 <= row.place.row < len(rows) and rows[row.place.row]["id"] == row.id):
            raise BadImage(f"{index} has changed since it was planned")
        found = rows[row.place.row]
        if found["status"] == "failed":
            return Stored(found)
        try:
            members = shards.members(name, found)
        except UserError as error:
            raise BadImage(error.rule) from error
        if hashlib.sha256(b"".join(members.values())).hexdigest() != found["sha256"]:
            raise BadImage(f"what {name}.tar says about it has changed since it was written (sha256)")
        return Stored(found, members["image"], members["json"])

    def finish(self, row: ImageRecord, output: Stored) -> None:
        """The record as it was when the shard was written."""
        if output.row["status"] == "failed":
            row.width, row.height = output.row["width"], output.row["height"]
            row.fail(output.row["stage"], output.row["reason"])
            return
        try:
            row.restore(json.loads(output.json))
            for region in row.regions:
                check_mask(region.rle, row.width, row.height)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BadImage(f"what the shard says about it can't be used ({type(error).__name__}: {error})") from error
        row.data, row.status = output.data, output.row["status"]
