"""Hash the images of a run or of a source: the file by sha256, and the appearance by two perceptual hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.records import Place, Planned
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.sources.base import Source
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.storage import is_url
from pad_pipeline.threads import OverShards, map_shards

Problem = Literal["", "failed", "unreadable", "uniform"]
"""Why an image can't be compared by its appearance: it failed in the run, its file is no image that can be read, or it
is almost uniform. Empty if it can."""
_GROUP = 64
"""Images of a source that are hashed in one call."""
_LEAST_SPREAD = 4.0
"""Standard deviation of the 32 x 32 gray levels, 0..255, below which an image is almost uniform. Its hashes are then
decided by noise, so it could match anything. Of our 51 photographs, the plainest has 23."""


class Hashed(NamedTuple):
    """The hashes of one image."""

    name: str
    """The key in a run; the path or id in another source."""
    id: str
    sha256: bytes = b""
    """The hash of the file's bytes; empty if they can't be read."""
    pixels: int = 0
    """Width times height."""
    looks: tuple[int, int] = (0, 0)
    """The perceptual hashes phash (low frequencies) and dhash (gradients), each of 64 bits."""
    problem: Problem = ""
    """Why `looks` means nothing; empty if it does."""


def check_package() -> None:
    """Raise `UserError` if the package for perceptual hashes is missing."""
    if not installed("imagehash"):
        raise UserError("near copies", "perceptual hashes", not_installed("imagehash"), OPTIONAL["imagehash"].install)


def hash_image(name: str, id: str, data: bytes) -> Hashed:
    """Return the hashes of the upright image in a file's bytes."""
    sha256 = hashlib.sha256(data).digest()
    try:
        image, _ = decode(data, DecodeSettings())
    except BadImage:
        return Hashed(name, id, sha256, problem="unreadable")
    pixels, gray = image.width * image.height, image.convert("L")
    if np.asarray(gray.resize((32, 32), Image.Resampling.BOX), np.float32).std() < _LEAST_SPREAD:
        return Hashed(name, id, sha256, pixels, problem="uniform")
    import imagehash  # here, because it is optional

    first, second = (int(str(kind(gray)), 16) for kind in (imagehash.phash, imagehash.dhash))
    return Hashed(name, id, sha256, pixels, (first, second))


def hash_run(shards: ShardFolder, over: OverShards | None = None) -> Iterator[list[Hashed]]:
    """Yield the hashes of the images of each finished shard, through `over`, see `map_shards`."""
    return map_shards(over, partial(_of_shard, shards), shards.names)


def _of_shard(shards: ShardFolder, name: str) -> list[Hashed]:
    return [
        Hashed(row["key"], row["id"], problem="failed")
        if row["status"] == "failed"
        else hash_image(row["key"], row["id"], shards.members(name, row)["image"])
        for row in shards.index(name)
    ]


def hash_source(source: Source, over: OverShards | None = None) -> Iterator[list[Hashed]]:
    """Yield the hashes of the images of a source, a group at a time, through `over`, see `map_shards`."""

    def groups() -> Iterator[tuple[str, list[Planned]]]:
        images = iter(source)
        while group := list(islice(images, _GROUP)):
            yield group[0].source, group

    return map_shards(over, partial(_of_group, source.root), groups())


def _of_group(root: str, item: tuple[str, list[Planned]]) -> list[Hashed]:
    found = []
    for one in item[1]:
        name = one.source or one.id
        try:
            if one.problem:
                raise BadImage(one.problem)
            assert isinstance(one.place, Place), "only `StoredSource` plans rows of shards"
            place = one.place._replace(file=one.place.file or one.source)
            found.append(hash_image(name, one.id, read_bytes(root, place, DecodeSettings().max_file_bytes)))
        except BadImage:
            found.append(Hashed(name, one.id, problem="unreadable"))
    return found


def open_evaluation(images: str, image_root: str | None = None) -> Source:
    """Return the images of an evaluation set: a COCO JSON with `images` and `annotations`, or all that `open_source`
    reads. `image_root` is the folder of the images of a JSON or a list; by default the folder of that file.

    Raises:
        UserError: `images`, here called `against`, is none of these.
    """
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.sources.open import open_source

    with rename_field(images="image_root" if image_root else "against", annotations="against"):
        if not is_url(images) and images.lower().endswith(".json") and _is_object(Path(images)):
            return CocoSource(Path(images), image_root or Path(images).parent)
    with rename_field(images="against"):
        return open_source(images, image_root)


def _is_object(path: Path) -> bool:
    """Return whether a JSON file holds an object, as COCO's do, and not a list."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError:
        return False
