"""Fetch one tensor of a checkpoint on the web, without the rest of the file: from safetensors, or from torch's zip."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from pad_pipeline.console import progress
from pad_pipeline.transfers import NotAloneError, RemoteFile

_ITEM_SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_STORAGES = {"HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32", "DoubleStorage": "F64"}
_OTHER_STORAGES = {f"{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")}
_MOST = 1 << 26
"""The most bytes of a file's header, or of its pickle, that are read."""


class DamagedError(Exception):
    """A tensor has another checksum than its file says."""


class Place(NamedTuple):
    """Where a tensor lies in a file."""

    name: str
    dtype: str
    """In the words of safetensors."""
    shape: tuple[int, ...]
    start: int
    stop: int
    crc: int = 0
    """The CRC-32 of the bytes; 0 if none is known."""


def find_tensor(file: RemoteFile, endings: tuple[str, ...]) -> Place:
    """Find the first tensor whose name has one of the `endings`. No code of a pickle is run.

    Raises:
        NotAloneError: the file has another form, or no such tensor.
        RangesRefusedError, OSError: see `RemoteFile.read`.
    """
    begin = file.read(0, min(8, file.size))
    try:
        place = _in_zip(file, endings) if begin.startswith(b"PK\x03\x04") else _in_safetensors(file, begin, endings)
        if place.dtype not in _ITEM_SIZES or math.prod(place.shape) * _ITEM_SIZES[place.dtype] != (
            place.stop - place.start
        ):
            raise NotAloneError(f"{place.name} is {place.dtype} {place.shape} in {place.stop - place.start} bytes")
    except (ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise NotAloneError(f"its header can't be read ({type(error).__name__})") from error
    return place


def _in_safetensors(file: RemoteFile, begin: bytes, endings: tuple[str, ...]) -> Place:
    (length,) = struct.unpack("<Q", begin)
    if not 2 <= length <= min(_MOST, file.size - 8):
        raise NotAloneError("it is neither safetensors nor a zip of torch")
    header: dict[str, Any] = json.loads(file.read(8, 8 + length))
    name = _named(header, endings)
    start, stop = (8 + length + int(offset) for offset in header[name]["data_offsets"])
    if not 8 + length <= start <= stop <= file.size:
        raise NotAloneError(f"{name} lies outside of the file")
    return Place(name, header[name]["dtype"], tuple(map(int, header[name]["shape"])), start, stop)


def _named(names: Any, endings: tuple[str, ...]) -> str:
    try:
        return next(name for name in names if isinstance(name, str) and name.endswith(endings))
    except StopIteration:
        raise NotAloneError(f"no tensor in it is called {endings[0]}") from None


class _Storage(NamedTuple):
    dtype: str
    key: str
    items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Names(pickle.Unpickler):
    """Reads the names and the places of tensors. It makes nothing else, and calls nothing that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function for each pickle, because a pickle may set the attributes of what it finds.
            return lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride)
        if module == "torch" and (name in _STORAGES or name in _OTHER_STORAGES):
            return _STORAGES.get(name, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, items = saved
        if kind != "storage" or not (isinstance(dtype, str) and isinstance(key, str) and isinstance(items, int)):
            raise pickle.UnpicklingError("it holds something other than storages")
        return _Storage(dtype, key, items)


class _Ranges(io.RawIOBase):
    """A remote file for `zipfile`."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self.file, self.position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        if self.position < 0:
            raise ValueError("before the start of the file")
        return self.position

    def read(self, size: int = -1) -> bytes:
        stop = self.file.size if size < 0 else min(self.position + size, self.file.size)
        if stop - self.position > _MOST:
            raise NotAloneError("its directory is too large")
        content = self.file.read(self.position, stop) if stop > self.position else b""
        self.position += len(content)
        return content


def _in_zip(file: RemoteFile, endings: tuple[str, ...]) -> Place:
    try:
        with zipfile.ZipFile(_Ranges(file)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            (root,) = (name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl"))
            if members[f"{root}data.pkl"].file_size > _MOST:
                raise NotAloneError("its list of tensors is too large")
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
                raise NotAloneError("its numbers are not little-endian")
            state = _Names(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise NotAloneError(f"its zip can't be read ({type(error).__name__})") from error
    except pickle.UnpicklingError as error:
        raise NotAloneError(f"it holds more than tensors: {str(error)[:80]}") from error
    named = state.get("model", state)
    tensor = named[name := _named(named, endings)]
    if not isinstance(tensor, _Tensor) or tensor.storage.dtype not in _ITEM_SIZES:
        raise NotAloneError(f"{name} is not a tensor of floating point numbers")
    item, count = _ITEM_SIZES[tensor.storage.dtype], math.prod(tensor.shape)
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    member = members[f"{root}data/{tensor.storage.key}"]
    if tensor.stride != strides or not 0 <= tensor.offset <= tensor.storage.items - count:
        raise NotAloneError(f"the numbers of {name} are not stored one after another")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise NotAloneError("its tensors are compressed")
    if member.file_size != tensor.storage.items * item:
        raise NotAloneError(f"{name} is cut")
    # A member begins after its own header, whose length the directory does not tell.
    header = file.read(member.header_offset, member.header_offset + 30)
    magic, name_length, extra_length = struct.unpack("<4s22xHH", header)
    start = member.header_offset + 30 + name_length + extra_length + tensor.offset * item
    stop = start + count * item
    if magic != b"PK\x03\x04" or stop > file.size:
        raise NotAloneError(f"{name} lies outside of the file")
    crc = member.CRC if count == tensor.storage.items else 0  # of another storage, or written without it
    return Place(name, tensor.storage.dtype, tensor.shape, start, stop, crc)


def save_tensor(file: RemoteFile, place: Place, part: Path, facts: dict[str, Any], shown: str) -> dict[str, Any]:
    """Write a tensor of a remote file to `part`, as safetensors, and return `facts` with its place and its sha256.

    An earlier call that broke left a part of the same tensor: this call adds what is missing.

    Args:
        file: where the tensor lies.
        place: from `find_tensor`.
        part: the file to write.
        facts: where the tensor comes from. They are kept in the file, and tell whose part was left.
        shown: stands beside the progress bar.

    Raises:
        DamagedError: the bytes that came have another checksum than the file's directory says.
        RangesRefusedError, OSError: see `RemoteFile.read`.
    """
    size = place.stop - place.start
    facts = facts | {"etag": file.etag, "size": file.size, "tensor": place.name, "offset": place.start, "bytes": size}
    texts = {name: str(value) for name, value in facts.items()}
    entry = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": texts, place.name: entry}).encode()
    header += b" " * (-len(header) % 8)
    header = struct.pack("<Q", len(header)) + header
    with part.open("a+b") as sink, progress(f"fetching {shown}", size // 10**6, "MB") as update:
        sink.seek(0)
        if sink.read(len(header)) != header:
            sink.truncate(0)
            sink.write(header)
        done = min(sink.seek(0, io.SEEK_END) - len(header), size)

        def write(piece: bytes) -> None:
            nonlocal done
            sink.write(piece)
            done += len(piece)
            update(completed=done // 10**6)

        if done < size:
            file.stream(place.start + done, place.stop, write)
        sink.flush()
        os.fsync(sink.fileno())
        sink.seek(len(header))
        digest, crc = hashlib.sha256(), 0
        while piece := sink.read(1 << 22):
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
    if place.crc and crc != place.crc:
        part.unlink()
        raise DamagedError(f"{place.name} has the checksum {crc:08x}, and should have {place.crc:08x}")
    return facts | {"sha256": digest.hexdigest()}
