"""A list of images, one a row: Parquet, CSV, TSV or JSONL, with captions or conversations where it has them."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from pad_pipeline.errors import UserError
from pad_pipeline.parquet import open_parquet
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import clean, ending_of, image_store, location_problem, parse_json, should_be
from pad_pipeline.sources.llava import caption_of, open_text, read_conversations, root_of_list
from pad_pipeline.storage import is_url

GUESSES = {
    "image": ("image", "path", "file_name", "filename", "file", "image_path", "img", "url", "image_url"),
    "id": ("id", "key", "image_id", "uid"),
    "caption": ("caption", "text", "txt", "alt"),
    "conversations": ("conversations",),
}
"""Role -> names that its column may have, in any case; the first that a list has is taken."""
_HEAD = 1000
"""The number of records of a JSONL file whose names are taken as its columns."""
_LONGEST = 16 << 20
"""The most characters of one line; a longer one means a broken file."""
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)

_Row = tuple[int, Any, Any, Any, Any]
"""The row's number, then image, id, caption and conversations as in the file. A ValueError in the place of the image
says what is wrong with the row."""


class ManifestSource:
    """The rows that have an image; the others are counted.

    The arguments are those of `open_source`; the ending of `images` gives its format.

    Raises:
        UserError: it can't be read, or lacks a column.
    """

    def __init__(self, images: str, image_root: str | Path | None, columns: Mapping[str, str]) -> None:
        self.origin, self.root = str(images), root_of_list(str(images), image_root)
        self.counts: Counter[str] = Counter()
        self._named = dict(columns)
        # A list may give absolute paths below the root as the user wrote it, with links that `self.root` resolves.
        given = Path(self.origin).parent if image_root is None else Path(image_root)
        self._roots = [root.rstrip("/") + "/" for root in (self.root, str(given.absolute()))]
        ending = ending_of(self.origin)
        self._delimiter = "\t" if ending == ".tsv" else ","
        self._read = {".parquet": self._parquet, ".csv": self._csv, ".tsv": self._csv}.get(ending, self._jsonl)
        self._unit = "row" if ending == ".parquet" else "line"
        next(self._rows(), None)  # a file of another kind is reported at once

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for number, image, name, caption, turns in self._rows():
            if image is None or image != image:  # NaN is how pandas writes null
                self.counts["rows without an image"] += 1
            else:
                yield self._planned(number, image, name, caption, turns)

    def _planned(self, number: int, image: Any, name: Any, caption: Any, turns: Any) -> Planned:
        row, source = f"{self._unit} {number}", ""
        try:
            if not isinstance(image, str):
                raise image if isinstance(image, ValueError) else ValueError(should_be("image", image, "one path"))
            source = image
            if image.startswith("/"):
                for root in self._roots:
                    source = source.removeprefix(root)
            name = _text("id", name) or _stem(source) or row.replace(" ", "-")
            caption = _text("caption", caption)
            conversations: Sequence[Mapping[str, str]] = ()
            if turns and turns == turns:
                conversations = _turns(turns)
                caption = caption or caption_of(conversations)
        except ValueError as error:
            name = name if isinstance(name, str) and name else row.replace(" ", "-")
            return Planned(name, source, problem=f"{row}: {error}")
        return Planned(name, source, caption, conversations, problem=location_problem(source))

    def _rows(self) -> Iterator[_Row]:
        try:
            yield from self._read()
        except UserError:
            raise
        except UnicodeDecodeError as error:
            raise self._wrong(f"it is not valid UTF-8 ({error.reason})", "save it as UTF-8") from error
        except Exception as error:
            if not is_url(self.origin) and not isinstance(error, _DAMAGE):
                raise  # apart from damage, only a network raises errors of other kinds
            remedy = "check the URL, and try again" if is_url(self.origin) else "repair or re-download the file"
            raise self._wrong(f"it can't be read ({error})", remedy) from error

    def _parquet(self) -> Iterator[_Row]:
        file: Any = self.origin
        if remote := is_url(self.origin):
            store, path = image_store(self.origin)
            file = store.open(path, "rb")
        # A local file is read in small pieces, a remote one by whole columns of a row group.
        with open_parquet(file, buffer_size=0 if remote else 1 << 20) as table:
            names = self._columns(table.schema_arrow.names)
            for role, column in zip(GUESSES, names, strict=True):
                if column is not None:
                    self._check_type(role, column, table.schema_arrow.field(column).type)
            number = 0
            for batch in table.iter_batches(4096, columns=[*filter(None, names)], use_threads=False):
                columns = [repeat(None) if name is None else batch.column(name).to_pylist() for name in names]
                yield from zip(range(number, number + len(batch)), *columns, strict=False)
                number += len(batch)

    def _check_type(self, role: str, column: str, kind: pa.DataType) -> None:
        types = pa.types
        kind = kind.value_type if types.is_dictionary(kind) else kind
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
        wanted, fits = "text or numbers", text or number
        remedy = "name another column"
        if role == "conversations":
            wanted = "a list of {from, value}, or its JSON"
            fits = text or types.is_list(kind) or types.is_large_list(kind)
        elif role == "image":
            wanted, fits = "paths or URLs; pad reads no images out of a Parquet file", text
            remedy = remedy if number else "write the images to files, or into WebDataset tars"
        if not (fits or types.is_null(kind)):
            raise self._wrong(f"its column {column!r} is of type {kind}, and should hold {wanted}", remedy)

    def _csv(self) -> Iterator[_Row]:
        with open_text(self.origin) as stream:
            # Strict, because without it a quote that is never closed would swallow rows without an error.
            reader = csv.reader(_lines(stream), delimiter=self._delimiter, strict=True)
            try:
                header = next(reader, [])
                # A missing column is the empty field that is appended to each row.
                pick = itemgetter(*[-1 if name is None else header.index(name) for name in self._columns(header)])
                for row in reader:
                    if len(row) == len(header):
                        row.append("")
                        image, name, caption, turns = pick(row)
                        yield reader.line_num, image or None, name, caption, turns
                    elif row:
                        wrong = ValueError(f"it has {len(row)} fields, and the header has {len(header)}")
                        yield reader.line_num, wrong, None, None, None
            except csv.Error as error:
                rule = f"line {reader.line_num} is not valid CSV ({error})"
                raise self._wrong(rule, "repair its quotes, or give a Parquet or JSONL file") from error

    def _jsonl(self) -> Iterator[_Row]:
        with open_text(self.origin) as stream:
            records = self._records(stream)
            head = list(islice(records, _HEAD))
            names = dict.fromkeys(name for _, record in head if isinstance(record, dict) for name in record)
            self._columns(list(names))
            # A file is often made of several files, each with names of its own.
            find = lru_cache(256)(partial(_find, named=self._named))
            for number, record in chain(head, records):
                if isinstance(record, dict):
                    image, name, caption, turns = map(record.get, find(tuple(record)))
                    yield number, image, name, caption, turns
                else:
                    yield number, ValueError("it should be an object"), None, None, None

    def _records(self, stream: TextIO) -> Iterator[tuple[int, Any]]:
        decode = json.JSONDecoder().raw_decode  # json.loads takes three times as long
        for number, line in enumerate(_lines(stream), 1):
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

    def _columns(self, there: Sequence[str]) -> tuple[str | None, ...]:
        """Return the columns of image, id, caption and conversations; raise a UserError if the list has no column for
        the image, lacks one that the user named, or has two of the same name."""
        listed = ", ".join(there[:50]) or "none"
        found = dict(zip(GUESSES, _find(there, self._named), strict=True))
        for role, column in self._named.items():
            if role not in GUESSES:
                rule = f"{role!r} is none of {', '.join(GUESSES)} (the columns are: {listed})"
                raise UserError("columns", f"{role}={column}", rule, "correct it")
            if found[role] is None:
                rule = f"{self.origin} has no such column; it has: {listed}"
                raise UserError("columns", f"{role}={column}", rule, "name one of these")
        if found["image"] is None:
            rule = f"it has no column {', '.join(GUESSES['image'])}; its columns are: {listed}"
            raise self._wrong(rule, "say which one holds the image: `columns` image=NAME")
        for chosen in found.values():
            if chosen is not None and there.count(chosen) > 1:
                raise self._wrong(f"it has more than one column {chosen!r}", "rename all but one")
        return tuple(found.values())

    def _wrong(self, rule: str, remedy: str) -> UserError:
        return UserError("images", self.origin, rule, remedy)


def _find(there: Sequence[str], named: Mapping[str, str]) -> tuple[str | None, ...]:
    """Return the column of each role of `GUESSES`; None for a role without one."""
    in_lower_case = {name.strip().lower(): name for name in reversed(there)}
    return tuple(
        next(
            (
                guess if guess in there else in_lower_case[guess.lower()]
                for guess in ((named[role],) if role in named else guesses)
                if guess in there or guess.lower() in in_lower_case
            ),
            None,
        )
        for role, guesses in GUESSES.items()
    )


def _lines(stream: TextIO) -> Iterator[str]:
    return iter(partial(stream.readline, _LONGEST), "")


def _text(role: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        raise ValueError(should_be(role, value, "text"))
    return "" if value is None or value != value else str(value)


def _turns(value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"conversations is not valid JSON ({getattr(error, 'msg', error)})") from error
    return read_conversations(value)


def _stem(image: str) -> str:
    if is_url(image):
        image = image.partition("?")[0].partition("#")[0].rpartition("/")[2]
    return os.path.splitext(image)[0]  # noqa: PTH122 (a Path for each of millions is slow)
