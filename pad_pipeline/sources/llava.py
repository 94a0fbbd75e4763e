"""Lists of records: a LLaVA JSON, such as blip_laion_cc_sbu_558k.json, or a JSONL with one record a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any, TextIO

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally, clean, ending_of, open_url, require_folder
from pad_pipeline.sources.fields import NAMES, Fields
from pad_pipeline.storage import is_url

_WINDOW = 1 << 16
"""The least number of characters that are read at a time."""
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD]")
_SPACE = " \t\r\n"
_LONGEST = 64 << 20
"""The most characters of one record; a longer one means a broken file."""
_LONGEST_LINE = 16 << 20
"""The most characters of one line; a longer one means a broken file."""
_HEAD = 1000
"""The number of records whose names are looked at when the file is opened."""


class LlavaSource:
    """The records that have an image. Text-only records (LLaVA's stage 2 has them) are counted and left out.

    The file holds a list of records, or one record a line; its first character decides, and its ending does not. The
    arguments are those of `open_source`.
    """

    def __init__(
        self, images: str | Path, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        self.origin, self.root = str(images), root_of_list(str(images), image_root)
        self.counts = Tally()
        self._one_a_line = self._is_one_a_line()
        unit = "line" if self._one_a_line else "record"
        self.fields = Fields(self.root, given_root(self.origin, image_root), self.counts, columns, unit)
        next(self.records(), None)  # a file of another kind is reported at once

    def check_names(self) -> None:
        """Refuse a short file in which no record names an image, or none has a field that the user named.

        Raises:
            UserError: this is so.
        """
        head = list(islice(self.records(), _HEAD))
        names = dict.fromkeys(name for _, record in head if isinstance(record, dict) for name in record)
        if names and len(head) < _HEAD:
            self.fields.checked(list(names), self.origin)

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        return chain.from_iterable(starmap(self.fields.rows, self.records()))

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield the number of each record and the record unchanged, also of those without an image. A number is a
        position in the list, from 0 on, or a line, from 1 on.

        Raises:
            UserError: the file holds neither a list of records nor one record a line, or is damaged.
        """
        with self._reading(), open_text(self.origin) as stream:
            yield from self._lines(stream) if self._one_a_line else enumerate(stream_list(stream))

    def _lines(self, stream: TextIO) -> Iterator[tuple[int, Any]]:
        decode = json.JSONDecoder().raw_decode  # json.loads takes three times as long
        for number, line in enumerate(iter(partial(stream.readline, _LONGEST_LINE), ""), 1):
            if not (line := line.strip()):
                continue
            try:
                record, end = decode(line)
                if end != len(line):
                    raise ValueError("something follows the record")
                yield number, clean(record) if "\\ud" in line.lower() else record
            except (ValueError, RecursionError) as error:
                rule = f"line {number} is not valid JSON ({getattr(error, 'msg', error)})"
                raise self._wrong(rule, "repair or re-download the file") from error

    def _is_one_a_line(self) -> bool:
        """Return whether the file holds one record a line, from its beginning."""
        by_name = ending_of(self.origin) != ".json"
        with self._reading(), open_text(self.origin) as stream:
            begin = stream.read(1)
            while begin and begin in _SPACE:
                begin = stream.read(1)
            if begin != "{" or by_name:
                return by_name and begin != "["
            try:
                record = json.loads(begin + stream.readline(_LONGEST_LINE))
            except (ValueError, RecursionError):
                return False
            names = {name.lower() for name in record} if isinstance(record, dict) else set()
            return bool(names & set(NAMES["image"])) and not {"images", "annotations"} <= names

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around code that reads the file: turn its errors into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError as error:
            raise self._wrong(f"it is not valid UTF-8 ({error.reason})", "save it as UTF-8") from error
        except _NoListError as error:
            rule = f"it holds {error}, and should hold a list of {{id, image, conversations}}, or one record a line"
            raise self._wrong(rule, "give a LLaVA JSON; `pad import coco` takes a COCO JSON") from error
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"it is not valid JSON ({error})", "repair or re-download the file") from error
        except Exception as error:
            if not is_url(self.origin) and not isinstance(error, OSError):
                raise  # apart from damage, only a network raises errors of other kinds
            remedy = "check the URL, and try again" if is_url(self.origin) else "repair or re-download the file"
            raise self._wrong(f"it can't be read ({error})", remedy) from error

    def _wrong(self, rule: str, remedy: str) -> UserError:
        return UserError("images", self.origin, rule, remedy)


def root_of_list(images: str, image_root: str | Path | None) -> str:
    """Return the folder or URL that paths in a file are relative to: `image_root`, or the folder of the file.

    Raises:
        UserError: `image_root` is no folder, or `images` no file.
    """
    root = images.rpartition("/")[0] if is_url(images) else str(Path(images).resolve().parent)
    if image_root is not None:
        root = image_folder(image_root)
    if not is_url(images) and not Path(images).is_file():
        raise UserError("images", images, "there is no such file", "check the path")
    return root


def image_folder(image_root: str | Path) -> str:
    """Return the absolute path or the URL of `image_root`.

    Raises:
        UserError: it is no folder, or a URL that pad does not open.
    """
    with rename_field(images="image_root"):
        return require_folder(image_root)


def given_root(images: str, image_root: str | Path | None) -> str | Path:
    """Return the folder of `root_of_list` as the user wrote it."""
    return image_root if image_root is not None else "" if is_url(images) else Path(images).parent


def open_text(images: str) -> TextIO:
    """Open a local or remote text file that lists images; bytes that are no UTF-8 raise an error when they are read."""
    if not is_url(images):
        return Path(images).open(encoding="utf-8-sig", newline="")
    try:
        return TextIOWrapper(open_url(images), encoding="utf-8-sig", newline="")
    except Exception as error:
        raise UserError("images", images, f"it can't be opened ({error})", "check the URL") from error


class _NoListError(ValueError):
    pass


def stream_list(stream: TextIO) -> Iterator[Any]:
    """Yield the entries of a JSON list of any size, of which a window is in memory.

    Raises:
        ValueError: the text is not JSON, or not a list.
    """
    window = _Window(stream)
    window.open_list()
    first = True
    while window.next_entry(first):
        yield window.read_entry()
        yield from window.like_the_last()
        first = False


class _Window:
    """The part of a streamed JSON list that is in memory, and the position in it that is read next."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.ended = stream, False
        self.text, self.at = "", 0
        self.escaped = False  # whether an escape in the text may stand for half a character
        self.between = ""  # what stood before the last entry
        decoder: Any = json.JSONDecoder()
        self.decode, self.scan = decoder.raw_decode, decoder.scan_once

    def read_on(self) -> None:
        """Drop the text before the position, and append at least as much as is left. So the time for a long entry is
        proportional to its length, and not to its square."""
        left = self.text[self.at :]
        more = self.stream.read(max(_WINDOW, len(left)))
        self.text, self.at, self.ended = left + more, 0, not more
        self.escaped = _SURROGATE.search(self.text) is not None

    def open_list(self) -> None:
        """Move behind the bracket that opens the list."""
        while not self.text and not self.ended:
            self.read_on()
            self.text = self.text.lstrip(_SPACE)
        if not self.text.startswith("["):
            kinds = {"{": "an object", '"': "a string", "n": "null", "t": "true", "f": "false"}
            if self.text[:1] in kinds or self.text[:1].isdecimal():
                raise _NoListError(kinds.get(self.text[0], "a number"))
            raise ValueError("it does not begin with a list")
        self.at = 1

    def next_entry(self, first: bool) -> bool:
        """Move behind the comma, to the beginning of the next entry; return False at the list's end."""
        while (found := _BETWEEN.match(self.text, self.at)) and found.end() == len(self.text) and not self.ended:
            self.read_on()
        assert found  # the pattern matches an empty text as well
        start, comma = found.end(), "," in found[0]
        if self.text[start : start + 1] == "]":
            if comma:
                raise ValueError("a comma stands before the list's end")
            if (self.text[start + 1 :] + self.stream.read()).strip(_SPACE):
                raise ValueError("something follows the list")
            return False
        if comma == first and start < len(self.text):
            raise ValueError(f"a comma is {'too many' if first else 'missing'} between two entries")
        self.at, self.between = start, found[0]
        return True

    def read_entry(self) -> Any:
        """Return the entry that begins at the position, and move behind it."""
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                # A number near the window's end may go on behind it: `1e+` reads as 1.
                if end + 2 < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError:
                if self.ended or len(self.text) - self.at > _LONGEST:
                    raise
            self.read_on()
        if self.escaped and _SURROGATE.search(self.text, self.at, end):
            value = clean(value)
        self.at = end
        return value

    def like_the_last(self) -> Iterator[Any]:
        """Yield the next entries, in half the time, as long as the window holds them whole and the same text stands
        between them; `next_entry` and `read_entry` go on from there."""
        text, between, scan, at = self.text, self.between, self.scan, self.at
        size, most = len(between), len(text) - 2
        try:
            while size and not self.escaped and text.startswith(between, at):
                value, end = scan(text, at + size)
                if end >= most:
                    break
                at = end
                yield value
        except (StopIteration, ValueError):
            pass
        self.at = at
