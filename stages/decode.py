"""Plan -> images: reads each file once and notes what is in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from PIL import Image

from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.masks import check_mask
from pad_pipeline.records import ImageRecord, Place
from pad_pipeline.roles import ORDER, RedoFrom
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.stages.base import Stage


class Decoded(NamedTuple):
    """What a file holds."""

    data: bytes
    format: str
    width: int
    """Of the upright image."""
    height: int
    meta: dict[str, Any] | None
    """What an earlier run wrote about it."""


class Decode(Stage[Decoded, Decoded]):
    """Reads each file, keeps its bytes untouched, and notes the size of the upright image.

    Decoded pixels do not travel with the shard: a shard of photographs would take gigabytes. Later stages decode again
    (`image`), in threads ahead of the model.

    Args:
        settings: which images are taken.
        root: folder or URL that the planned files are relative to.
        redo_from: of an earlier run's findings, what comes before this stage is kept.
    """

    name = "decode"

    def __init__(self, settings: DecodeSettings, root: str, redo_from: RedoFrom = "tag") -> None:
        super().__init__()
        self.settings, self.root, self.redo_from = settings, root, redo_from

    def prepare(self, row: ImageRecord) -> Decoded:
        """Read, check, decode."""
        most = self.settings.max_file_bytes
        assert isinstance(row.place, Place), "only `Restore` reads whole samples"
        data = read_bytes(self.root, row.place, most)
        if row.content_sha256 and hashlib.sha256(data).hexdigest() != row.content_sha256:
            raise BadImage("the file has changed since it was planned (sha256)")
        image, kind = decode(data, self.settings)
        meta = json.loads(read_bytes(self.root, row.earlier, most)) if row.earlier.at >= 0 else None
        return Decoded(data, kind, image.width, image.height, meta)

    def finish(self, row: ImageRecord, output: Decoded) -> None:
        """Keep what `prepare` found; with the findings of an earlier run that are still wanted."""
        if output.meta is not None:
            self._restore(row, output)
        row.data, row.format, row.width, row.height = output[:4]

    def _restore(self, row: ImageRecord, output: Decoded) -> None:
        try:
            row.restore(output.meta or {})
            if self.redo_from == "patchify":
                for region in row.regions:
                    check_mask(region.rle, output.width, output.height)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            raise BadImage(f"what the shard says about it can't be used ({type(error).__name__}: {error})") from error
        if (row.width, row.height) != (output.width, output.height):
            raise BadImage(f"the shard says {row.width} x {row.height} pixels, it has {output.width} x {output.height}")
        for step in ORDER[ORDER.index(self.redo_from) :]:
            row.forget(step)
        # Boxes are looked for where there are tags; every later step begins with boxes.
        begins_with = {"tag": True, "ground": row.tags}.get(self.redo_from, row.regions)
        if not begins_with:
            row.status = "empty"


def image(row: ImageRecord, settings: DecodeSettings) -> Image.Image:
    """The upright RGB image of a row that has been through `Decode`."""
    return decode(row.data, settings)[0]
