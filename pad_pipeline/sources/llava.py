"""A LLaVA JSON: a list of `{id, image, conversations}`, as in blip_laion_cc_sbu_558k.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import clean, image_store, location_problem, require_folder, should_be
from pad_pipeline.storage import is_url

_WINDOW = 1 << 16
"""The least number of characters that are read at a time."""
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD]")
_SPACE = " \t\r\n"
_LONGEST = 64 << 20
"""The most characters of one record; a longer one means a broken file."""


class LlavaSource:
    """The records that have an image. Text-only records (LLaVA's stage 2 has them) are counted and left out.

    The arguments are those of `open_source`.
    """

    def __init__(self, images: str | Path, image_root: str | Path | None) -> None:
        self.origin, self.root = str(images), root_of_list(str(images), image_root)
        self.counts: Counter[str] = Counter()
        next(self.records(), None)  # a file of another kind is reported at once

    def __iter__(self) -> Iterator[Planned]:
        for number, record in enumerate(self.records()):
            if not isinstance(record, dict):
                problem = should_be(f"record {number}", record, "an object")
                yield Planned(f"record-{number}", "", problem=problem)
            elif record.get("image") is None:
                self.counts["records without an image"] += 1
            else:
                yield read_record(record, number, record.get("id"), record["image"])

    def records(self) -> Iterator[Any]:
        """Yield the unchanged entries of the list, including those without an image.

        Raises:
            UserError: the file holds no list, or is damaged.
        """
        with open_text(self.origin) as stream:
            try:
                yield from stream_list(stream)
            except _NoListError as error:
                rule = f"it holds {error}, and should hold a list of {{id, image, conversations}}"
                raise UserError("images", self.origin, rule, "give a LLaVA JSON") from error
            except (ValueError, RecursionError) as error:
                rule = f"it is not valid JSON ({error})"
                raise UserError("images", self.origin, rule, "repair or re-download the file") from error
            except Exception as error:
                if not is_url(self.origin):
                    raise
                rule = f"it can't be read ({type(error).__name__}: {error})"
                raise UserError("images", self.origin, rule, "check the URL, and try again") from error


def read_record(record: dict[str, Any], number: int, name: Any, image: Any) -> Planned:
    """Return one record as a planned image, whose `problem` says what is wrong with the record."""
    name = str(name) if name is not None else f"record-{number}"
    if not isinstance(image, str):
        return Planned(name, "", problem=f"record {number}: {should_be('image', image, 'one path')}")
    try:
        conversations = read_conversations(record.get("conversations") or [])
    except ValueError as error:
        return Planned(name, image, problem=f"record {number}: {error}")
    return Planned(name, image, caption_of(conversations), conversations, problem=location_problem(image))


def root_of_list(images: str, image_root: str | Path | None) -> str:
    """Return the folder or URL that paths in a file are relative to: `image_root`, or the folder of the file.

    Raises:
        UserError: `image_root` is no folder, or `images` no file.
    """
    root = images.rpartition("/")[0] if is_url(images) else str(Path(images).resolve().parent)
    if image_root is not None:
        with rename_field(images="image_root"):
            root = require_folder(image_root)
    if not is_url(images) and not Path(images).is_file():
        raise UserError("images", images, "there is no such file", "check the path")
    return root


def open_text(images: str) -> TextIO:
    """Open a local or remote text file that lists images; bytes that are no UTF-8 raise an error when they are read."""
    if not is_url(images):
        return Path(images).open(encoding="utf-8-sig", newline="")
    store, path = image_store(images)
    try:
        return cast(TextIO, store.open(path, "r", encoding="utf-8-sig", newline=""))
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
        first = False


class _Window:
    """The part of a streamed JSON list that is in memory, and the position in it that is read next."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.ended = stream, False
        self.text, self.at = "", 0
        self.escaped = False  # whether an escape in the text may stand for half a character
        self.decode = json.JSONDecoder().raw_decode

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
        self.at = start
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


def read_conversations(value: Any) -> list[dict[str, str]]:
    """Return the turns of parsed JSON.

    Raises:
        ValueError: it is not a list of `{from, value}` with strings.
    """
    if not isinstance(value, list):
        raise ValueError(should_be("conversations", value, "a list"))
    turns = []
    for turn in value:
        speaker, said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not (isinstance(speaker, str) and isinstance(said, str)):
            raise ValueError("each turn of conversations should be {from, value} with two strings")
        turns.append(turn if len(turn) == 2 else {"from": speaker, "value": said})
    return turns


def caption_of(conversations: list[dict[str, str]]) -> str:
    """Return the first answer without `<image>`, as LLaVA's plain template takes it; empty if there is none. Questions
    don't matter, because that template drops them."""
    for turn in conversations:
        if turn["from"] in ("gpt", "assistant"):
            caption = turn["value"]
            return caption.replace("<image>", "").strip() if "<image>" in caption else caption
    return ""
