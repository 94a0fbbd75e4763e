"""WebDataset tars: members that share a name up to its first dot are one sample."""

from __future__ import annotations

import codecs
import gzip
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from pad_pipeline.errors import UserError
from pad_pipeline.records import Place, Planned
from pad_pipeline.sources.base import Tally, open_url, parse_json
from pad_pipeline.sources.conversations import without_mark
from pad_pipeline.sources.fields import Fields, Record
from pad_pipeline.sources.folder import IMAGE_ENDINGS
from pad_pipeline.sources.gzipped import is_gzipped, open_gzipped
from pad_pipeline.sources.patterns import Files, find_files
from pad_pipeline.storage import is_url

_MEMBER = re.compile(r"(?:\./)*((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""Key and endings of a member's name. A name that begins with a dot has no key."""
_ROLES = dict.fromkeys(IMAGE_ENDINGS, "image") | {".txt": "text", ".caption": "text", ".json": "json"}
_PIECE = 1 << 20
_MOST_TEXT = 1 << 20
"""The most bytes of a caption or of a JSON."""
_HELD, _OF_A_SAMPLE = 64 << 20, 500
"""Bytes of texts of one tar that are held in memory, and bytes that each sample takes beside its texts."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte-order mark -> encoding. That of UTF-32 comes first, because it begins like that of UTF-16."""
_DAMAGE = (
    tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError, MemoryError, EOFError, zlib.error,
)  # fmt: skip
"""The errors of tarfile for a damaged header; a MemoryError for one that claims terabytes."""


class TarSource:
    """The samples that have an image, in the order of the tars' names. Texts are read at once, and images later.

    Args:
        images: the user's path, URL or pattern.
        files: the tars; by default those that `images` names.
        columns: field -> its name in the JSON of a sample, where it can't be guessed.

    Raises:
        UserError: the first file is no tar.
    """

    def __init__(self, images: str, files: Files | None = None, columns: Mapping[str, str] | None = None) -> None:
        self.origin, (self.root, self._tars) = images, files or find_files(images)
        self.counts = Tally()
        self._fields = Fields(self.root, self.root, self.counts, columns, unit="sample")
        with self._opened(self._tars[0]):
            pass  # a file of another kind is reported at once

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for name in self._tars:
            with self._opened(name) as (stream, tar):
                for sample in self._samples(name, stream, tar):
                    if sample.more_images:
                        reason = "more images of the same sample"
                        self.counts.note(reason, f"{name}/{sample.key}")
                        self.counts[reason] += sample.more_images - 1
                    if sample.image is None:
                        self.counts.note("samples without an image", f"{name}/{sample.key}")
                    else:
                        yield self._planned(name, sample, sample.image)

    def _planned(self, tar: str, sample: _Sample, image: _Image) -> Planned:
        where, caption, facts = f"{tar}/{sample.key}", "", Record("", [], "", [])
        try:
            caption = without_mark(read_text(sample.text).strip())
        except ValueError as error:
            self.counts.note("captions that can't be read, which are left out", f"{where}: {error}")
        if sample.json is not None:
            text = sample.json
            facts = self._fields.texts_beside(lambda: parse_json(read_text(text)), "JSON members", where)
        place = Place(tar, image.at, image.size)
        name, caption = facts.name or sample.key, caption or facts.caption
        return Planned(name, f"{tar}/{image.name}", caption, facts.conversations, place=place)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[BinaryIO, tarfile.TarFile]]:
        where = f"{self.root}/{name}"
        try:
            if is_gzipped(where):
                with open_gzipped(where) as content:
                    yield cast(BinaryIO, content), _open_tar(where, cast(BinaryIO, content))
                return
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

    def _samples(self, name: str, stream: BinaryIO, tar: tarfile.TarFile) -> Iterator[_Sample]:
        """Yield the samples of a tar, in the order of their first members. The members of a sample need not stand
        together, as long as the texts between them fit into memory."""
        held: dict[str, _Sample] = {}
        passed: set[int] = set()
        size, last = 0, ""
        for key, ending, member in self._members(stream, tar):
            sample = held.get(key)
            if sample is None and hash(key) in passed:
                reason = "members too far from the rest of their sample, which are left out"
                self.counts.note(reason, f"{name}/{member.name}")
                continue
            if sample is None:
                sample = held[key] = _Sample(key)
                size += _OF_A_SAMPLE
            elif key != last:
                self.counts.note("members that do not stand with the rest of their sample", f"{name}/{member.name}")
            size += sample.take(stream, ending.lower(), member)
            last = key
            if size > _HELD:
                del held[key]
                passed.update(map(hash, held))
                yield from held.values()
                held, size = {key: sample}, 0
        yield from held.values()

    def _members(self, stream: BinaryIO, tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        """Yield the plain files with their keys and endings, up to where the tar is damaged."""
        end = math.inf if isinstance(stream, gzip.GzipFile) else stream.seek(0, 2)
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # tarfile would remember them all
                if member.size < 0 or tar.offset < member.offset_data:
                    raise tarfile.ReadError("a negative size")
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        self.counts.note("members that are no plain files", member.name)
                elif match := _MEMBER.fullmatch(member.name):
                    yield match[1], match[2], member
                else:
                    self.counts.note("members without a key or an ending", member.name)
                if tar.offset > end:
                    raise tarfile.ReadError("it ends inside a member")
            # tarfile takes a damaged header for the end, which is zeros.
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
            while rest := stream.read(_PIECE):
                if rest.strip(b"\0"):
                    self.counts.note("tars with something behind their end, which is not read", tar.name)
                    break
        except gzip.BadGzipFile:
            self.counts.note("tars that can't be read to the end", tar.name)
        except OSError:  # of a disk or a store; some are ValueErrors too, but no damage of the tar
            raise
        except _DAMAGE:
            self.counts.note("tars that can't be read to the end", tar.name)


class _Image(NamedTuple):
    """The member that holds a sample's image."""

    name: str
    at: int
    size: int


@dataclass(slots=True)
class _Sample:
    key: str
    image: _Image | None = None
    more_images: int = 0
    text: bytes = b""
    json: bytes | None = None
    _endings: dict[str, str] = field(default_factory=dict)

    def take(self, stream: BinaryIO, ending: str, member: tarfile.TarInfo) -> int:
        """Take a member, if it is the first of its role; return the number of bytes that are kept of it. Names without
        an inner dot have precedence: of `a.depth.png` and `a.png` the second is the image."""
        zipped = ending.endswith(".gz")
        ending = ending.removesuffix(".gz")
        role = _ROLES.get("." + ending.rpartition(".")[2])
        if role is None or (zipped and role == "image"):
            return 0
        earlier = self._endings.get(role)
        self.more_images += role == "image" and earlier is not None
        if earlier is not None and not ("." in earlier and "." not in ending):
            return 0
        data = b""
        if role == "image":
            self.image = _Image(member.name, member.offset_data, member.size)
        else:
            stream.seek(member.offset_data)
            data = stream.read(min(member.size, _MOST_TEXT + 1))
            if len(data) < min(member.size, _MOST_TEXT + 1):  # the tar ends here
                return 0
            if zipped:
                data = _unzipped(data)
            if role == "text":
                self.text = data
            else:
                self.json = data
        self._endings[role] = ending
        return len(data)


def _unzipped(data: bytes) -> bytes:
    """Decompress a small gzip file; what can't be decompressed stays as it is, which is no text."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _MOST_TEXT + 1)
    except zlib.error:
        return data


def read_text(data: bytes) -> str:
    """Decode a text of unknown origin: by its byte-order mark (UTF-8, UTF-16, UTF-32), and otherwise as UTF-8.

    Raises:
        ValueError: it is none of these.
    """
    if len(data) > _MOST_TEXT:
        raise ValueError(f"it has more than {_MOST_TEXT} bytes")
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8")


def _open(where: str) -> BinaryIO:
    return open_url(where) if is_url(where) else Path(where).open("rb")


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
