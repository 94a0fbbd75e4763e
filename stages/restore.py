"""Shards -> records: what an earlier run found in each image, taken over without a look at its pixels."""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple

from PIL import Image

from pad_pipeline.masks import check_mask
from pad_pipeline.pictures import BadImage, DecodeSettings, upright_size
from pad_pipeline.records import ImageRecord
from pad_pipeline.sources.read import read_bytes
from stages.base import Stage


class Stored(NamedTuple):
    """What a shard holds of an image."""

    data: bytes
    """The image's file."""
    meta: dict[str, Any]
    """Its `key.json`."""


class Restore(Stage):
    """Reads the file and the findings of each image back from the shard that they are in.

    Only the header of the picture is read, to compare its size with the masks'; decoding would take most of the time.

    Args:
        settings: how large a file may be.
        root: folder or URL that the planned shards are relative to.
    """

    name = "restore"

    def __init__(self, settings: DecodeSettings, root: str) -> None:
        super().__init__()
        self.settings, self.root = settings, root

    def prepare(self, row: ImageRecord) -> Stored:
        """Both members; checked, for the tar may have been damaged since."""
        most = self.settings.max_file_bytes
        data = read_bytes(self.root, row.place, most)
        try:
            meta = json.loads(read_bytes(self.root, row.earlier, most))
            with Image.open(io.BytesIO(data)) as image:
                found = upright_size(image)
            said = int(meta["width"]), int(meta["height"])
            if found != said:
                raise BadImage(f"the shard says {said[0]} x {said[1]} pixels, it has {found[0]} x {found[1]}")
            for region in meta["regions"]:
                check_mask(region["rle"], *found)
        except BadImage:
            raise
        except Exception as error:  # outside bytes: whatever a parser trips over is what is wrong
            raise BadImage(f"what the shard says about it can't be used ({type(error).__name__}: {error})") from error
        return Stored(data, meta)

    def finish(self, row: ImageRecord, output: Stored) -> None:
        """The record as it was when the shard was written."""
        row.restore(output.meta)
        row.data = output.data
        if not row.regions:
            row.status = "empty"
