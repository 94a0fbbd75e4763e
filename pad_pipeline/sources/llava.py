"""A LLaVA JSON: a list of `{id, image, conversations}`, as in blip_laion_cc_sbu_558k.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import clean, image_store, location_problem, require_folder
from pad_pipeline.storage import is_url

_WINDOW = 1 << 16
"""Characters that are read at a time."""
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD]")
_SPACE = " \t\r\n"
_LONGEST = 64 << 20
"""Characters of one record; a longer one is a broken file."""


class LlavaSource:
    """The records that have an image. Text-only records (LLaVA's stage 2 has them) are counted and left out.

    Args:
        images: the JSON file, or its URL.
        image_root: what image paths are relative to; by default the folder that the file lies in.
    """

    def __init__(self, images: str | Path, image_root: str | Path | None) -> None:
        self.origin = str(images)
        self.root = default_root(self.origin, image_root)
        self.counts: Counter[str] = Counter()
        if not is_url(self.origin) and not Path(self.origin).is_file():
            raise UserError("images", images, "there is no such file", "check the path")
        next(self.records(), None)  # a file of another kind is told at once

    def __iter__(self) -> Iterator[Planned]:
        """The images in the file's order."""
        for number, record in enumerate(self.records()):
            name = f"record-{number}"
            if not isinstance(record, dict):
                yield Planned(name, "", problem=f"record {number} is {_kind(record)}, and should be an object")
                continue
            if record.get("image") is None:
                self.counts["records without an image"] += 1
                continue
            yield read_record(record, number, record.get("id"), record["image"])

    def records(self) -> Iterator[Any]:
        """The entries of the list as they stand there, those without an image too.

        Raises:
            UserError: it is no such list, or damaged.
        """
        with open_text(self.origin) as stream:
            try:
                yield from stream_list(stream)
            except (ValueError, RecursionError) as error:
                if isinstance(error, _NoListError):
                    rule = f"it holds {error}, and should hold a list of {{id, image, conversations}}"
                    raise UserError("images", self.origin, rule, "give a LLaVA JSON") from error
                rule = f"it is not valid JSON ({error})"
                raise UserError("images", self.origin, rule, "mend or re-download the file") from error
            except Exception as error:
                if not is_url(self.origin):
                    raise
                rule = f"it can't be read ({type(error).__name__}: {error})"
                raise UserError("images", self.origin, rule, "check the URL, and try again") from error


def read_record(record: dict[str, Any], number: int, name: Any, image: Any) -> Planned:
    """One record as an image to be. What is wrong with it is said in `problem`."""
    name = str(name) if name is not None else f"record-{number}"
    if not isinstance(image, str):
        return Planned(name, "", problem=f"record {number}: image is {_kind(image)}, and should be one path")
    try:
        conversations = read_conversations(record.get("conversations") or [])
    except ValueError as error:
        return Planned(name, image, problem=f"record {number}: {error}")
    caption = caption_of(conversations)
    return Planned(name, image, caption=caption, conversations=conversations, problem=location_problem(image))


def default_root(origin: str, image_root: str | Path | None) -> str:
    """The folder that paths in the file `origin` are relative to."""
    if image_root is not None:
        with rename_field(images="image_root"):
            return require_folder(image_root)
    return origin.rpartition("/")[0] if is_url(origin) else str(Path(origin).resolve().parent)


def open_text(images: str) -> TextIO:
    """Open a local or remote text file that names images; bytes that are no UTF-8 are an error when they are read."""
    if is_url(images):
        store, path = image_store(images)
        try:
            stream: TextIO = store.open(path, "r", encoding="utf-8-sig", newline="")
            return stream
        except Exception as error:
            raise UserError("images", images, f"it can't be opened ({error})", "check the URL") from error
    return Path(images).open(encoding="utf-8-sig", newline="")


class _NoListError(ValueError):
    pass


def stream_list(stream: TextIO) -> Iterator[Any]:
    """Yield the entries of a JSON list, one after another; of a file of any size, a window is in memory.

    Raises:
        ValueError: the text is not JSON, or not a list.
    """
    window = _Window(stream)
    window.open_list()
    if window.next_entry(first=True):
        yield window.read_entry()
        while window.next_entry():
            yield window.read_entry()


class _Window:
    """The part of a streamed JSON list that is in memory, and the place in it that is read next."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.ended = stream, False
        self.text, self.at = "", 0
        self.escaped = False  # whether an escape in the text may stand for half a character
        self.decode = json.JSONDecoder().raw_decode

    def read_on(self) -> None:
        """Drop what was read, and read twice as much as is left: a long entry costs its length, and not its square."""
        left = self.text[self.at :]
        more = self.stream.read(max(_WINDOW, len(left)))
        self.text, self.at, self.ended = left + more, 0, not more
        self.escaped = _SURROGATE.search(self.text) is not None

    def open_list(self) -> None:
        """Go behind the bracket that opens the list."""
        while not self.text and not self.ended:
            self.read_on()
            self.text = self.text.lstrip(_SPACE)
        if not self.text.startswith("["):
            kinds = {"{": "an object", '"': "a string", "n": "null", "t": "true", "f": "false"}
            if self.text[:1] in kinds or self.text[:1].isdecimal():
                raise _NoListError(kinds.get(self.text[0], "a number"))
            raise ValueError("it does not begin with a list")
        self.at = 1

    def next_entry(self, first: bool = False) -> bool:
        """Go to where the next entry begins, behind the comma; False at the list's end."""
        found = _BETWEEN.match(self.text, self.at)
        while found and found.end() == len(self.text) and not self.ended:
            self.read_on()
            found = _BETWEEN.match(self.text, self.at)
        assert found  # for it matches an empty text as well
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
        """Read the entry that begins here."""
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
    """The turns, checked.

    Raises:
        ValueError: they are not a list of `{from, value}` with strings.
    """
    if not isinstance(value, list):
        raise ValueError(f"conversations is {_kind(value)}, and should be a list")
    turns = []
    for turn in value:
        speaker, said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not (isinstance(speaker, str) and isinstance(said, str)):
            raise ValueError("each turn of conversations should be {from, value} with two strings")
        turns.append(turn if len(turn) == 2 else {"from": speaker, "value": said})
    return turns


def caption_of(conversations: list[dict[str, str]]) -> str:
    """The caption: the first answer, to the letter, as LLaVA's plain template takes it. Empty where there is none.

    The question says nothing (the template drops it), wherever in it `<image>` stands.
    """
    for turn in conversations:
        if turn["from"] in ("gpt", "assistant"):
            caption = turn["value"]
            return caption.replace("<image>", "").strip() if "<image>" in caption else caption
    return ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
