"""The stage restore: it reads finished samples with all their results from shards of an earlier run."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.records import ImageRecord, ShardRow
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.decode import restore_row
from pad_pipeline.storage import is_url


class Restore(Stage[None, None]):
    """Reads back the samples that `StoredSource` planned, without decoding their images. The planned paths of indexes
    are relative to the folder or URL `root`.

    The sha256 of each sample is compared with the index. Without this check, a changed byte would get a new, matching
    hash in the new shard, and could never be detected.
    """

    name = "restore"

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root, self._lock = root, threading.Lock()
        self._folder = lru_cache(64)(ShardFolder)
        # Eight indexes are enough, because the images of a shard come from one index after another.
        self._index = lru_cache(8)(lambda folder, name: self._folder(folder).index(name))

    def finish(self, row: ImageRecord, output: None) -> None:
        """Read the sample of the image, check its sha256, and set all fields of the row as the shard has them."""
        assert isinstance(row.place, ShardRow), "`StoredSource` plans rows of shards"
        file = row.place.file if is_url(row.place.file) else f"{self.root}/{row.place.file}"
        folder, _, index = file.rpartition("/")
        name = index.removesuffix(".parquet")
        with self._lock:  # otherwise several threads would read the same index at once
            shards, rows = self._folder(folder), self._index(folder, name)
        if not (0 <= row.place.row < len(rows) and rows[row.place.row]["id"] == row.id):
            raise BadImage(f"{index} has changed since it was planned")
        stored = rows[row.place.row]
        if stored["status"] == "failed":
            row.width, row.height = stored["width"], stored["height"]
            row.fail(stored["stage"], stored["reason"])
            return
        try:
            members = shards.members(name, stored)
        except UserError as error:
            if isinstance(error.__cause__, MemoryError):
                raise MemoryError(error.rule) from error
            raise BadImage(error.rule) from error
        if hashlib.sha256(b"".join(members.values())).hexdigest() != stored["sha256"]:
            raise BadImage(f"its sample in {name}.tar has changed since it was written (sha256)")
        restore_row(row, members["json"], check_masks=True)
        row.data, row.status = members["image"], stored["status"]
        row.stage, row.reason = stored["stage"], stored["reason"]
