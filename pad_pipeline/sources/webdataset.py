"""WebDataset tars: each run of members that share a name up to its first dot is one sample."""

from __future__ import annotations

import glob
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, cast

from pad_pipeline.errors import UserError
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources.base import image_store, parse_json, require_folder
from pad_pipeline.sources.folder import IMAGE_ENDINGS
from pad_pipeline.sources.llava import caption_of, read_conversations
from pad_pipeline.storage import is_url

_MEMBER = re.compile(r"(?:\./)*((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""Key and endings of a member's name. A name that begins with a dot has no key."""
_ROLES = dict.fromkeys(IMAGE_ENDINGS, "image") | {".txt": "text", ".caption": "text", ".json": "json"}
_MOST_TEXT = 1 << 20
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError, MemoryError)
"""The errors of tarfile for a damaged header; a MemoryError for one that claims terabytes."""


class TarSource:
    """The samples that have an image, in the order of the tars' names. Texts are read at once, and images later.

    `images` is one tar, or a pattern of several (`*`, `?`, `[]`), as a path or a URL.

    Raises:
        UserError: there is no such tar, or the first file is none.
    """

    def __init__(self, images: str) -> None:
        self.origin = str(images)
        self.counts: Counter[str] = Counter()
        # A question mark in a web address is no pattern.
        wild = re.search(r"[*\[]" if self.origin.startswith("http") else r"[*?\[]", self.origin)
        if wild and not is_url(self.origin) and Path(self.origin).is_file():
            wild = None
        before = self.origin[: wild.start()] if wild else self.origin
        folder, slash, _ = before.rpartition("/")
        self.root = require_folder(folder or slash or ".")
        self._tars = self._matches(self.origin[len(folder + slash) :], bool(wild))
        if not self._tars:
            raise UserError("images", images, "there is no such tar", "check the path or the pattern")
        with self._opened(self._tars[0]):
            pass  # a file of another kind is reported at once

    def _matches(self, pattern: str, wild: bool) -> list[str]:
        """Return the tars, sorted, relative to the root."""
        if is_url(self.root):
            if not wild:
                return [pattern]
            store, path = image_store(f"{self.root}/{pattern}")
            _, prefix = image_store(self.root)
            try:
                return sorted(found[len(prefix) :].lstrip("/") for found in store.glob(path))
            except Exception as error:  # any of the errors of the network and of the store's library
                raise _unreadable(self.origin, error) from error
        pattern = pattern if wild else glob.escape(pattern)
        found = glob.glob(pattern, root_dir=self.root, recursive=True)  # noqa: PTH207 (relative, hidden left out)
        names = sorted(name for name in found if Path(self.root, name).is_file())
        for name in names:
            if name.encode(errors="ignore").decode() != name:
                raise UserError("images", ascii(name), "the file name is not valid UTF-8", "rename the file")
        return names

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for name in self._tars:
            with self._opened(name) as (stream, tar):
                for sample in self._samples(stream, tar):
                    if sample.more_images:
                        self.counts["more images of the same sample"] += sample.more_images
                    if sample.image is None:
                        self.counts["samples without an image"] += 1
                    else:
                        yield _planned(name, sample, sample.image)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[BinaryIO, tarfile.TarFile]]:
        where = f"{self.root}/{name}"
        try:
            with _open(where) as stream:
                # Reading the last byte first fails here already on a server that only sends whole files.
                stream.seek(max(0, stream.seek(0, 2) - 1))
                stream.read(1)
                stream.seek(0)
                yield stream, _open_tar(where, stream)
        except Exception as error:
            # A network that fails must not be taken for a tar that ends early.
            if isinstance(error, UserError) or not (is_url(where) or isinstance(error, OSError)):
                raise
            raise _unreadable(where, error) from error

    def _samples(self, stream: BinaryIO, tar: tarfile.TarFile) -> Iterator[_Sample]:
        for key, members in groupby(self._members(stream, tar), itemgetter(0)):
            sample = _Sample(key)
            for _, ending, member in members:
                sample.take(stream, ending.lower(), member)
            yield sample

    def _members(self, stream: BinaryIO, tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        """Yield the plain files with their keys and endings, up to where the tar is damaged."""
        end = stream.seek(0, 2)
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # tarfile would remember them all
                if member.size < 0 or tar.offset < member.offset_data:
                    raise tarfile.ReadError("a negative size")
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        self.counts["members that are no plain files"] += 1
                elif match := _MEMBER.fullmatch(member.name):
                    yield match[1], match[2], member
                else:
                    self.counts["members without a key or an ending"] += 1
                if tar.offset > end:
                    raise tarfile.ReadError("it ends inside a member")
            # tarfile takes a damaged header for the end, which is zeros.
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
        except OSError:  # of a disk or a store; some are ValueErrors too, but no damage of the tar
            raise
        except _DAMAGE:
            self.counts["tars that can't be read to the end"] += 1


@dataclass(slots=True)
class _Sample:
    key: str
    image: tarfile.TarInfo | None = None
    more_images: int = 0
    text: bytes = b""
    json: bytes | None = None
    _endings: dict[str, str] = field(default_factory=dict)

    def take(self, stream: BinaryIO, ending: str, member: tarfile.TarInfo) -> None:
        """Take a member, if it is the first of its role. Names without an inner dot have precedence: of `a.depth.png`
        and `a.png` the second is the image."""
        role = _ROLES.get("." + ending.rpartition(".")[2])
        if role is None:
            return
        earlier = self._endings.get(role)
        self.more_images += role == "image" and earlier is not None
        if earlier is not None and not ("." in earlier and "." not in ending):
            return
        if role == "image":
            self.image = member
        else:
            stream.seek(member.offset_data)
            data = stream.read(min(member.size, _MOST_TEXT + 1))
            if len(data) < min(member.size, _MOST_TEXT + 1):  # the tar ends here
                return
            if role == "text":
                self.text = data
            else:
                self.json = data
        self._endings[role] = ending


def _planned(tar: str, sample: _Sample, image: tarfile.TarInfo) -> Planned:
    caption = sample.text[:_MOST_TEXT].decode("utf-8-sig", "replace").strip()
    name, turns, problem = sample.key, [], ""
    if sample.json is not None:
        try:
            facts = _read_json(sample.json)
            if isinstance(facts.get("id"), (str, int)):
                name = str(facts["id"]) or name
            turns = read_conversations(facts.get("conversations") or [])
            texts = (facts.get(field) for field in ("caption", "text"))
            caption = caption or next((text for text in texts if isinstance(text, str)), "") or caption_of(turns)
        except (ValueError, RecursionError) as error:
            problem = f"the .json of {sample.key}: {error}"
    place = Place(tar, image.offset_data, image.size)
    return Planned(name, f"{tar}/{image.name}", caption, turns, place=place, problem=problem)


def _read_json(data: bytes) -> dict[str, Any]:
    if len(data) > _MOST_TEXT:
        raise ValueError(f"it has more than {_MOST_TEXT} bytes")
    value = parse_json(data.decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise ValueError("it should be an object")
    return value


def _open(where: str) -> BinaryIO:
    if not is_url(where):
        return Path(where).open("rb")
    store, path = image_store(where)
    return cast(BinaryIO, store.open(path, "rb"))


def _open_tar(where: str, stream: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="backslashreplace")
    except _DAMAGE as error:
        remedy = "unpack it if it is compressed (gunzip): pad reads single images at their place in the tar"
        raise UserError("images", where, f"this is no tar from its first byte on ({error})", remedy) from error


def _unreadable(where: str, error: Exception) -> UserError:
    detail = " ".join(str(error).split())[:200]
    rule = f"it can't be read ({type(error).__name__}: {detail})"
    return UserError("images", where, rule, "check it, and try again")
