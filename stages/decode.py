"""The stage decode: it reads each planned file once, and notes format and size of the image."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from PIL import Image

from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.masks import check_mask
from pad_pipeline.records import ImageRecord, Place
from pad_pipeline.roles import STEPS, RedoFrom
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.stages.base import Stage


class Decoded(NamedTuple):
    """The bytes of one file, and the facts about its image."""

    data: bytes
    format: str
    width: int
    """Width of the upright image, in pixels."""
    height: int
    meta: bytes | None
    """The `key.json` that an earlier run wrote about the image."""


class Decode(Stage[Decoded, Decoded]):
    """Reads each file, keeps its bytes unchanged, and notes the size of the upright image.

    The shard does not hold decoded pixels, because they would take gigabytes for a shard of photographs. Later stages
    decode the bytes again (`image`), in threads ahead of the model.

    Args:
        settings: limits of the images that are accepted.
        root: folder or URL that the planned files are relative to.
        redo_from: the first step that is done again; what an earlier run found before this step is kept.
    """

    name = "decode"

    def __init__(self, settings: DecodeSettings, root: str, redo_from: RedoFrom = "tag") -> None:
        super().__init__()
        self.settings, self.root, self.redo_from = settings, root, redo_from

    def prepare(self, row: ImageRecord) -> Decoded:
        """Read the file, check its sha256 if the plan has one, and decode it."""
        most = self.settings.max_file_bytes
        assert isinstance(row.place, Place), "only `Restore` reads whole samples"
        data = read_bytes(self.root, row.place, most)
        if row.content_sha256 and hashlib.sha256(data).hexdigest() != row.content_sha256:
            raise BadImage("the file has changed since it was planned (sha256)")
        image, kind = decode(data, self.settings)
        meta = read_bytes(self.root, row.earlier, most) if row.earlier.at >= 0 else None
        return Decoded(data, kind, image.width, image.height, meta)

    def finish(self, row: ImageRecord, output: Decoded) -> None:
        """Set the row's bytes, format and size, and those results of an earlier run that are kept."""
        if output.meta is not None:
            restore_row(row, output.meta, check_masks=self.redo_from == "patchify")
            self._forget(row, output)
        row.data, row.format, row.width, row.height = output[:4]

    def _forget(self, row: ImageRecord, output: Decoded) -> None:
        if (row.width, row.height) != (output.width, output.height):
            raise BadImage(f"the shard says {row.width} x {row.height} pixels, it has {output.width} x {output.height}")
        for step in STEPS[STEPS.index(self.redo_from) :]:
            row.forget(step)
        # Without the input of its first step the image is done: `ground` needs tags, and later steps need boxes.
        begins_with = {"tag": True, "ground": row.tags}.get(self.redo_from, row.regions)
        row.status = "ok" if begins_with else "empty"


def restore_row(row: ImageRecord, meta: bytes, check_masks: bool) -> None:
    """Set what a sample's `key.json` says about an image.

    Raises:
        BadImage: it can't be used.
    """
    try:
        row.restore(json.loads(meta))
        if check_masks:
            for region in row.regions:
                check_mask(region.rle, row.width, row.height)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadImage(f"what the shard says about it can't be used ({type(error).__name__}: {error})") from error


def image(row: ImageRecord, settings: DecodeSettings) -> Image.Image:
    """Return the upright RGB image of a row that has been through `Decode`."""
    return decode(row.data, settings)[0]
