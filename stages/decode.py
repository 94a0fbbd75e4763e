"""The stage decode: it reads each planned file once, and finds out the format and the size of the image."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Mapping
from types import MappingProxyType

from PIL import Image

from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.masks import check_mask, check_sizes
from pad_pipeline.records import ImageRecord, Place
from pad_pipeline.roles import STEPS, RedoFrom
from pad_pipeline.sources.read import read_bytes, remember
from pad_pipeline.stages.base import Stage


class Decode(Stage[None, None]):
    """Reads each file into the shard, unchanged, and sets the format and the size of the upright image.

    The shard does not hold decoded pixels, because a shard of photographs may need gigabytes. Stages with a model
    decode the bytes again with `image`, in threads ahead of the model. It keeps some pixels for the next such stage.

    Args:
        settings: limits for the images, for example for their number of pixels.
        root: the folder or URL that the planned files are relative to.
        redo_from: the first step that is done again. Results of an earlier run for the steps before it are kept.
        private: see `read_bytes`.
        witnesses: files in object stores that the driver could read, see `remember`.
    """

    name = "decode"

    def __init__(
        self,
        settings: DecodeSettings,
        root: str,
        redo_from: RedoFrom = "tag",
        private: bool = False,
        witnesses: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        remember(witnesses)
        self.settings, self.root, self.redo_from, self.private = settings, root, redo_from, private

    def finish(self, row: ImageRecord, output: None) -> None:
        """Read the file, compare its sha256 with that of the plan, if any, and set the row's bytes, format and size.

        If an earlier run planned the row, its results are read too, and set as far as they are kept.
        """
        most = self.settings.max_file_bytes
        assert isinstance(row.place, Place), "only the stage restore reads whole samples"
        data = read_bytes(self.root, row.place, most, self.private)
        if row.content_sha256 and hashlib.sha256(data).hexdigest() != row.content_sha256:
            raise BadImage("the file has changed since it was planned (sha256)")
        upright, kind = decode(data, self.settings)
        if row.earlier.at >= 0:
            meta = read_bytes(self.root, row.earlier, most)
            restore_row(row, meta, check_masks=self.redo_from == "patchify")
            self._forget(row, upright.size)
        row.data, row.format, row.width, row.height = data, kind, *upright.size

    def _forget(self, row: ImageRecord, size: tuple[int, int]) -> None:
        """Drop the results of the steps that are done again."""
        if (row.width, row.height) != size:
            raise BadImage(f"it has {size[0]} x {size[1]} pixels, not {row.width} x {row.height} as planned")
        for step in STEPS[STEPS.index(self.redo_from) :]:
            row.forget(step)
        # An image that lacks the input of the first step is finished: `ground` needs tags, and later steps need boxes.
        needed = {"tag": True, "captions": True, "ground": row.tags}.get(self.redo_from, row.regions)
        row.status = "ok" if needed else "empty"


def restore_row(row: ImageRecord, meta: bytes, check_masks: bool) -> None:
    """Set the results in `meta`, the JSON member of a sample.

    Raises:
        BadImage: the JSON is damaged.
    """
    try:
        row.restore(stored := json.loads(meta))
        check_sizes(stored)
        if check_masks:
            for region in row.regions:
                check_mask(region.rle, row.width, row.height)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadImage(f"its JSON in the shard can't be used ({type(error).__name__}: {error})") from error


def image(row: ImageRecord, settings: DecodeSettings) -> Image.Image:
    """Return the upright RGB image of a row that `Decode` or `Restore` has filled. Do not change its pixels, because
    later stages get the same object."""
    if (found := _pixels.get(id(row))) is None:
        found = decode(row.data, settings)[0]
        _keep(row, found, settings)
    return found


_pixels: dict[int, Image.Image] = {}
"""`id` of a row -> its decoded image, as long as the row exists."""
_finalizers: dict[int, weakref.finalize] = {}  # type: ignore[type-arg]
"""`id` of a row -> what frees its image."""
_kept = 0
"""Bytes of the images in `_pixels`."""
_lock = threading.RLock()  # a row may be deleted in a thread that holds it


def forget_image(row: ImageRecord) -> None:
    """Free the decoded image of a row that no later stage needs."""
    if finalizer := _finalizers.pop(id(row), None):
        finalizer()


def _keep(row: ImageRecord, upright: Image.Image, settings: DecodeSettings) -> None:
    """Keep the decoded image of a row until `forget_image` or the end of the row, if there is room."""
    global _kept
    size = 3 * upright.width * upright.height
    with _lock:
        if id(row) in _pixels or _kept + size > settings.kept_megabytes << 20:
            return
        _kept += size
        _pixels[id(row)] = upright
    _finalizers[id(row)] = finalizer = weakref.finalize(row, _drop, id(row), size)
    finalizer.atexit = False


def _drop(row: int, size: int) -> None:
    global _kept
    with _lock:
        del _pixels[row]
        _finalizers.pop(row, None)
        _kept -= size
