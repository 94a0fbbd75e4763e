"""Read the bytes of a planned image, from a disk, a tar, a Parquet file or a URL."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from pad_pipeline.addresses import any_client, public_client, refusal
from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage
from pad_pipeline.records import Place
from pad_pipeline.retries import REMEDY, TRIES, StoreError, ask, is_final, is_not_found
from pad_pipeline.sources.base import Tally, image_store
from pad_pipeline.sources.cells import in_cell, read_cell
from pad_pipeline.sources.fields import Fields, below_list
from pad_pipeline.sources.gzipped import is_gzipped, read_gzipped
from pad_pipeline.storage import is_url, store_of, url_problem
from pad_pipeline.stores import attempt, read_part, read_whole

SECONDS = 60
"""The longest time of one read over the network."""

_readable: dict[str, str] = {}
"""The file that this process read last, by store (`store_of`)."""
_Data = TypeVar("_Data", bytes, bytes | str)
_FAULTS_OF_A_FILE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip


def read_bytes(root: str, place: Place, most: int, private: bool = False) -> bytes:
    """Return the bytes at a place of the source with this root. More than `most` bytes are refused and not read.

    A URL that leads to a private address is refused too, unless `private` is true or it is on the root's own server.

    Raises:
        BadImage: nothing can be read there, or too much.
        UserError: the package for this kind of URL is not installed.
        OSError: the machine failed, for example its disk.
    """
    file = place.file if is_url(place.file) else f"{root}/{place.file}"
    if in_cell(place):
        table = file.rpartition("#")[0]
        data = _retried(table, lambda: read_cell(root, place)) if is_url(file) else _local_cell(root, place)
        if isinstance(data, str):
            return read_bytes(root, _named(root, place, data), most, private)
        if len(data) > most:
            raise _too_large(len(data), most)
        return data
    if place.at >= 0 and not 0 <= place.size <= most:
        raise _too_large(place.size, most)
    if place.at >= 0 and is_gzipped(place.file):
        return _whole(place, _retried(file, lambda: read_gzipped(file, place.at, place.size)))
    private = private or not is_url(place.file) or urlsplit(place.file)[:2] == urlsplit(root)[:2]
    data = _remote(file, place, most, private) if is_url(file) else _local(Path(file), place, most)
    if place.at >= 0 and len(data) > place.size:
        raise BadImage(f"the server of {place.file} sends whole files only")
    return _whole(place, data) if place.at >= 0 else data


def _whole(place: Place, data: bytes) -> bytes:
    if len(data) < place.size:
        raise BadImage(f"{place.file} ends inside the image: {len(data)} bytes instead of {place.size}")
    return data


def _named(root: str, place: Place, path: str) -> Place:
    """Return the place of the file that a row of a Parquet file names where its bytes are empty."""
    folder = place.file.rpartition("#")[0].rpartition("/")[0]
    path, problem = Fields(root, root, Tally()).path(below_list(folder, path))
    if problem:
        raise BadImage(f"its bytes are empty, and {problem}")
    return Place(path)


def _local_cell(root: str, place: Place) -> bytes | str:
    try:
        return read_cell(root, place)
    except (BadImage, MemoryError):
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {None, *_FAULTS_OF_A_FILE}:
            raise  # of a failing disk; Arrow's error for a damaged file has no number
        detail = " ".join(str(error).split())[:200]
        raise BadImage(f"{place.file.rpartition('#')[0]} can't be read ({type(error).__name__}: {detail})") from error


def _local(path: Path, place: Place, most: int) -> bytes:
    try:
        if not path.is_file():
            raise BadImage("this is no ordinary file" if path.exists() else "there is no such file")
        if place.at < 0 and (size := path.stat().st_size) > most:
            raise _too_large(size, most)
        with path.open("rb") as stream:
            if place.at >= 0:
                stream.seek(place.at)
                return stream.read(place.size)
            return stream.read()
    except OSError as error:
        if error.errno not in _FAULTS_OF_A_FILE:  # but of a failing disk, or of too many open files
            raise
        raise BadImage(f"the file can't be read ({error.strerror})") from error


def _remote(url: str, place: Place, most: int, private: bool) -> bytes:
    if problem := url_problem(url):
        raise BadImage(problem)
    return _retried(url, lambda: _fetch(url, place, most, private))


def _retried(url: str, fetch: Callable[[], _Data]) -> _Data:
    """Return what `fetch` reads over the network; try again where that may help.

    Raises:
        BadImage: it can't be read, for a reason that concerns this image alone, as far as one can know.
        UserError: its store also refuses what could be read there before, or gives no answer at all.
    """
    store = store_of(url)
    rounds = 2 if store else 1
    for number in range(1, rounds + 1):
        try:
            data = ask(fetch, lambda: image_store(url)[0].invalidate_cache())
            break
        except (BadImage, UserError, MemoryError):
            raise
        except Exception as raised:  # any of the errors of the network and of the store's library
            cause = raised.__cause__ if isinstance(raised, StoreError) else None
            error = cause if isinstance(cause, Exception) else raised
            if is_not_found(error):
                raise BadImage("there is nothing at this URL") from error
            if found := refusal(error):
                raise BadImage(str(found)) from error
            detail = f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            again = number > 1 and is_final(error)  # a refusal is asked for once more: it may be one of a moment
            if store and not again and not _answers(url, witness := _readable.get(store, "")):
                rule = "its store no longer gives this file, and no other"
                if not witness:
                    rule = "its store gives no answer, neither about this file nor about its folder"
                raise UserError("images", url, f"{rule} {detail}", REMEDY) from error
            if number == rounds:  # the store is well, and has given this file in no round
                tries = "it may not be read" if is_final(error) else f"it can't be fetched, in {rounds * TRIES} tries"
                raise BadImage(f"{tries} {detail}") from error
    if store and data:
        _readable[store] = url
    return data


def _answers(url: str, witness: str) -> bool:
    """Return whether a store still gives the file `witness`, which was read before, or says that it is gone. Without a
    witness, return whether the store gives any answer about the folder of `url`, if only a refusal."""
    try:
        store, path = image_store(witness or url.rpartition("/")[0])
        attempt(store, "info", path)
        if witness:  # the same requests as for an image, because a store may refuse one kind alone for a while
            read_part(store, path, 0, 1)
    except Exception as error:
        return is_not_found(error) or (not witness and is_final(error))
    return True


def witnesses() -> dict[str, str]:
    """Return the file of each store that this process read last, for other processes, see `remember`."""
    return dict(_readable)


def remember(files: Mapping[str, str]) -> None:
    """Note files that another process could read, by store. If they can't be read later, the store has failed."""
    _readable.update(files)


def _fetch(url: str, place: Place, most: int, private: bool) -> bytes:
    if not url.startswith("http"):
        store, path = image_store(url)
        if place.at >= 0:
            return read_part(store, path, place.at, place.at + place.size)
        size = attempt(store, "info", path)["size"]
        if size is not None and size > most:
            raise _too_large(size, most)
        return read_whole(store, path, size)
    store = _http(private)
    if place.at >= 0:
        return bytes(store.cat_file(url, start=place.at, end=place.at + place.size))
    content = bytearray()
    # As a stream, because a server may give no size, or a wrong one.
    with store.open(url, "rb", block_size=0, size=1) as stream:
        while piece := stream.read(min(1 << 20, most + 1 - len(content))):
            content += piece
            if len(content) > most:
                raise _too_large(f"more than {most}", most)
    return bytes(content)


def _http(private: bool) -> Any:
    import aiohttp
    import fsspec

    options = {"timeout": aiohttp.ClientTimeout(total=SECONDS)}
    return fsspec.filesystem("http", client_kwargs=options, get_client=any_client if private else public_client)


def _too_large(size: int | str, most: int) -> BadImage:
    return BadImage(f"the file has {size} bytes; decode.max_file_bytes allows {most}")
