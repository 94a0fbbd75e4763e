"""Tables with an image a row: Parquet, CSV or TSV, one file or many, with paths, URLs or the images themselves."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from pad_pipeline.errors import UserError
from pad_pipeline.parquet import open_parquet
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally, ending_of, open_url
from pad_pipeline.sources.cells import cell
from pad_pipeline.sources.fields import JSON, NAMES, Embedded, Fields, below_list, is_there, stem
from pad_pipeline.sources.llava import given_root, image_folder, open_text
from pad_pipeline.sources.patterns import Files, find_files
from pad_pipeline.storage import is_url

TABLES = {".parquet", ".csv", ".tsv"}
"""Endings of tables."""
_LONGEST = 16 << 20
"""The most characters of one line; a longer one means a broken file."""
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)
_ROWS = 4096
"""Rows of a Parquet file that are read at a time."""
_ROWS_WITH_BYTES = 16
"""Rows that are read at a time where the bytes of images must be looked at."""

_QUOTED = re.compile(r'"(?:[^"]|"")+"')

_Row = tuple[int, Any, Any, Any, Any, Any]
"""The row's number, then image, id, caption, conversations and JSON as in the file. A ValueError in the place of the
image says what is wrong with the row."""


class ManifestSource:
    """The rows that have an image; the others are counted.

    Args:
        images: the user's path, URL or pattern.
        image_root: the folder or URL that paths are relative to; by default the folder of each file.
        columns: the columns by field (`image`, `id`, `caption`, `conversations`), where they can't be guessed. If all
            are numbers, a CSV or TSV has no header, and columns are counted from 1.
        files: the tables, whose endings give their formats; by default those that `images` names.

    Raises:
        UserError: a file can't be read, or lacks a column.
    """

    def __init__(
        self,
        images: str,
        image_root: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        files: Files | None = None,
    ) -> None:
        self.origin, self.files, self.image_root = images, files or find_files(images), image_root
        self.root = self.files.root if image_root is None else image_folder(image_root)
        self.counts, self._named = Tally(), dict(columns or {})
        first = self.files.names[0]
        next(self._rows(first, self._fields(first)), None)  # a file of another kind is reported at once

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        without = []
        for name in self.files.names:
            fields = self._fields(name)
            below = "" if self.image_root is not None else name.rpartition("/")[0]
            for number, image, identity, caption, turns, facts in self._rows(name, fields):
                record = fields.of(image, identity, caption, turns)
                if facts is not None:
                    record = fields.with_facts(record, facts, number)
                if below:
                    images = [one if isinstance(one, Embedded) else below_list(below, one) for one in record.images]
                    record = record._replace(images=images)
                yield from fields.planned(record, number)
            without += [] if fields.has_texts else [name]
        for name in without if len(without) < len(self.files.names) else ():
            self.counts.note("files without a column of captions or conversations, which other files have", name)

    def _where(self, name: str) -> str:
        return f"{self.files.root}/{name}"

    def _ending(self, name: str) -> str:
        return ending_of(self._where(name))

    def _fields(self, name: str) -> Fields:
        alone = len(self.files.names) == 1
        given = given_root(self.origin, self.image_root) if alone else self.root
        unit = "row" if self._ending(name) == ".parquet" else "line"
        return Fields(self.root, given, self.counts, self._named, unit, "" if alone else name)

    def _rows(self, name: str, fields: Fields) -> Iterator[_Row]:
        with self._reading(name):
            yield from self._parquet(name, fields) if self._ending(name) == ".parquet" else self._csv(name, fields)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Around code that reads a file: turn its errors into a `UserError`."""
        where = self._where(name)
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError as error:
            raise UserError("images", where, f"it is not valid UTF-8 ({error.reason})", "save it as UTF-8") from error
        except Exception as error:
            if not is_url(where) and not isinstance(error, _DAMAGE):
                raise  # apart from damage, only a network raises errors of other kinds
            remedy = "check the URL, and try again" if is_url(where) else "repair or re-download the file"
            raise UserError("images", where, f"it can't be read ({error})", remedy) from error

    def _parquet(self, name: str, fields: Fields) -> Iterator[_Row]:
        where = self._where(name)
        remote = is_url(where)
        file: Any = open_url(where) if remote else where
        # A local file is read in small pieces, a remote one by whole columns of a row group.
        with open_parquet(file, buffer_size=0 if remote else 1 << 20) as table:
            columns = fields.checked(table.schema_arrow.names, where)
            if (
                columns[4]
                and not _is_text(kind := table.schema_arrow.field(JSON).type)
                and not pa.types.is_struct(kind)
            ):
                columns = (*columns[:4], None)
            for field, column in zip(NAMES, columns, strict=False):
                if column is not None:
                    self._check_type(where, field, column, table.schema_arrow.field(column).type)
            texts = [field.name for field in table.schema_arrow if _is_text(field.type)]
            found = fields.alternatives(table.schema_arrow.names)
            others = {names[0]: [name for name in names[1:] if name in texts] for names in found if names}
            image = str(columns[0])
            if not _holds_bytes(table.schema_arrow.field(image).type):
                rows = _plain_rows(table, columns, others)
            elif self.image_root is not None:
                rule = f"the column {image!r} of {where} holds the images themselves"
                raise UserError("image_root", self.image_root, rule, "leave it out")
            else:
                rows = _rows_with_bytes(table, columns, others, name)
            for row in rows:
                if not (row[3] or row[4]):
                    fields.other_texts(texts, columns)
                yield row

    def _check_type(self, where: str, field: str, column: str, kind: pa.DataType) -> None:
        types = pa.types
        kind, inner = _plain(kind), _inner(kind)
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
        wanted, fits = "text or numbers", _is_text(kind) or number
        if field == "conversations":
            wanted = "a list of {from, value}, or its JSON"
            fits = _is_text(kind) or types.is_nested(kind)
        elif field == "caption":
            fits = fits or _is_text(inner)
        elif field == "image":
            wanted, fits = "paths, URLs, or bytes of images", _is_text(inner) or _holds_bytes(kind)
        if not (fits or types.is_null(kind)):
            rule = f"its column {column!r} is of type {kind}, and should hold {wanted}"
            raise UserError("images", where, rule, f"name another column: `columns` {field}=NAME")

    def _csv(self, name: str, fields: Fields) -> Iterator[_Row]:
        where, tabs = self._where(name), self._ending(name) == ".tsv"
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
        with open_text(where) as stream:
            # A .tsv has no quotes (text/tab-separated-values). A .csv is read strictly, because otherwise a quote that
            # is never closed would swallow rows without an error.
            lines = _lines(stream)
            reader = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
            try:
                header, rows = self._header(reader)
                # A missing column is the empty field that is appended to each row.
                columns = fields.checked(header, where)
                pick = itemgetter(*[-1 if column is None else header.index(column) for column in columns])
                captions = [header.index(name) for name in fields.alternatives(header)[2][1:]]
                for row in rows:
                    if tabs:
                        row = [self._unquoted(value, where, reader.line_num) for value in row]
                    if len(row) == len(header):
                        row.append("")
                        image, identity, caption, turns, facts = pick(row)
                        caption = caption or next((row[position] for position in captions if row[position]), "")
                        if not (caption or turns):
                            fields.other_texts(header, columns)
                        image, identity = image.strip() or None, identity or None
                        yield reader.line_num, image, identity, caption, turns or None, facts or None
                    elif row:
                        wrong = ValueError(f"it has {len(row)} fields, and the header has {len(header)}")
                        yield reader.line_num, wrong, None, None, None, None
            except csv.Error as error:
                rule = f"line {reader.line_num} is not valid CSV ({error})"
                raise UserError("images", where, rule, "repair its quotes, or give a Parquet or JSONL file") from error

    def _unquoted(self, value: str, where: str, line: int) -> str:
        """Return a field of a TSV, without the quotes of a program that writes it like a CSV: such a program quotes a
        field that holds quotes, and doubles these."""
        if value[:1] == '"' and _QUOTED.fullmatch(value) and '""' in value[1:-1]:
            self.counts.note("fields in quotes, as in a CSV, whose quotes are removed", f"line {line} of {where}")
            return value[1:-1].replace('""', '"')
        return value

    def _header(self, reader: Any) -> tuple[list[str], Iterator[list[str]]]:
        """Return the names of the columns, and the rows. Without a header, the names are 1, 2, 3, ..."""
        first: list[str] = next(reader, [])
        numbered = bool(self._named) and all(column.isdecimal() for column in self._named.values())
        counted = [[str(number + start) for number in range(len(first))] for start in (0, 1)]
        if numbered and first not in counted:
            return [str(number + 1) for number in range(len(first))], chain([first] if first else [], reader)
        return first, reader


def _plain_rows(table: Any, columns: Sequence[str | None], others: Mapping[str, list[str]]) -> Iterator[_Row]:
    number = 0
    for batch in table.iter_batches(_ROWS, columns=_read(columns, others), use_threads=False):
        yield from _with_numbers(batch, columns, others, number)
        number += len(batch)


def _rows_with_bytes(
    table: Any, columns: Sequence[str | None], alternatives: Mapping[str, list[str]], name: str
) -> Iterator[_Row]:
    """Yield the rows of a Parquet file that holds images. Their bytes are read only for row groups whose statistics do
    not say that all of them are there."""
    image, *others = str(columns[0]), *columns[1:]
    kind = table.schema_arrow.field(image).type
    listed = _inner(kind) != _plain(kind)
    leaves = {table.metadata.schema.column(leaf).path: leaf for leaf in range(table.metadata.num_columns)}
    flat = not (listed or pa.types.is_struct(kind))
    of_image = {
        path: leaf for path, leaf in leaves.items() if path == image or (not flat and path.startswith(f"{image}."))
    }
    content = next((leaf for path, leaf in of_image.items() if path.endswith(".bytes")), min(of_image.values()))
    paths = [path for path in of_image if path.endswith(".path")]
    number = 0
    for group in range(table.metadata.num_row_groups):
        facts = table.metadata.row_group(group)
        statistics = facts.column(content).statistics
        complete = statistics is not None and statistics.has_null_count and statistics.null_count == 0
        complete = complete and bool(paths or not listed)
        read = [*_read(others, alternatives), *(paths if complete else [image])]
        if not read:
            yield from (
                (row, _images(None, name, image, row, True), None, None, None, None)
                for row in range(number, number + facts.num_rows)
            )
            number += facts.num_rows
            continue
        size = _ROWS if complete else _ROWS_WITH_BYTES
        for batch in table.iter_batches(size, row_groups=[group], columns=read, use_threads=False):
            there = [*([image] if paths or not complete else [None]), *others]
            for row, value, *rest in _with_numbers(batch, there, alternatives, number):
                yield row, _images(value, name, image, row, complete), *rest
            number += len(batch)


def _images(value: Any, file: str, column: str, row: int, complete: bool) -> list[Any]:
    """Return the images in one row of a column with images.

    Args:
        value: the value in the column; where all bytes are there (`complete`), only its paths, or None.
        file: the Parquet file.
        column: the name of the column.
        row: the number of the row.
        complete: whether all bytes are known to be there.
    """
    found: list[Any] = []
    for element, one in enumerate(value if isinstance(value, list) else [value]):
        path, content = (one.get("path"), one.get("bytes")) if isinstance(one, dict) else (None, one)
        if complete or content or (content is not None and not path):  # empty bytes without a path are a failed row
            number = element if isinstance(value, list) else None
            shown = f"{row}" if number is None else f"{row}.{number}"
            path = (path or f"{stem(file)}-{shown}.").replace("\\", "/")
            path = path.rpartition("/")[2] if path.startswith("/") else path
            found.append(Embedded(path, f"{file}/{shown}", cell(file, column, row, number)))
        elif path:
            found.append(path)
    return found


def _read(columns: Sequence[str | None], others: Mapping[str, list[str]]) -> list[str]:
    """Return the columns to read: the chosen ones, and the texts that stand in for their missing values."""
    chosen = [*filter(None, columns)]
    return [*chosen, *(name for column in chosen for name in others.get(column, ()))]


def _with_numbers(
    batch: Any, columns: Sequence[str | None], others: Mapping[str, list[str]], first: int
) -> Iterator[_Row]:
    values = [repeat(None) if column is None else _values(batch, column, others) for column in columns]
    yield from zip(range(first, first + len(batch)), *values, strict=False)


def _values(batch: Any, column: str, others: Mapping[str, list[str]]) -> list[Any]:
    """Return the values of a column; in the place of a missing one, that of the first other column that has one."""
    values: list[Any] = batch.column(column).to_pylist()
    for name in others.get(column, ()):
        if name in batch.schema.names and not all(map(is_there, values)):
            more = batch.column(name).to_pylist()
            values = [value if is_there(value) else other for value, other in zip(values, more, strict=True)]
    return values


def _lines(stream: TextIO) -> Iterator[str]:
    for line in iter(partial(stream.readline, _LONGEST), ""):
        if len(line) == _LONGEST:
            raise ValueError(f"a line has {_LONGEST} characters or more")
        yield line


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, of a dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _inner(kind: pa.DataType) -> pa.DataType:
    """Return the type of a list's elements; that of other values unchanged."""
    types, kind = pa.types, _plain(kind)
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return _plain(kind.value_type) if listed else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column holds images: bytes, `{bytes, path}` as of Hugging Face `datasets`, or lists of these."""
    kind = _inner(kind)
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_bytes(kind.field(position).type)
    return _is_bytes(kind)
