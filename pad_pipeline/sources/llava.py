"""A LLaVA JSON: a list of `{id, image, conversations}`, as in blip_laion_cc_sbu_558k.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import orjson

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.sources.base import Planned, clean, image_store, location_problem, require_folder
from pad_pipeline.storage import is_url

_WINDOW = 1 << 16
"""Characters that are read at a time."""
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD]")
_SPACE = " \t\r\n"
_LONGEST = 64 << 20
"""Characters of one record; a longer one is a broken file."""
_END = re.compile(r"\S\s*}\Z")
_IDS = (str, int, type(None))
_TRIES = 4
"""Places that are tried as the end of a window's last whole record; most often the first is."""


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
            return store.open(path, "r", encoding="utf-8-sig", newline="")
        except Exception as error:
            raise UserError("images", images, f"it can't be opened ({error})", "check the URL") from error
    return Path(images).open(encoding="utf-8-sig", newline="")


class _NoListError(ValueError):
    pass


def stream_list(stream: TextIO) -> Iterator[Any]:
    """The entries of a JSON list, one after another; of a file of any size a window is in memory.

    Raises:
        ValueError: the text is not JSON, or not a list.
    """
    decoder = json.JSONDecoder()
    text = ""
    while not text and (window := stream.read(_WINDOW)):
        text = window.lstrip(_SPACE)
    if not text.startswith("["):
        kinds = {"{": "an object", '"': "a string", "n": "null", "t": "true", "f": "false"}
        if text[:1] in kinds or text[:1].isdecimal():
            raise _NoListError(kinds.get(text[0], "a number"))
        raise ValueError("it does not begin with a list")
    at, ended, first, escaped = 1, False, True, _SURROGATE.search(text) is not None
    fresh, ending = True, ""  # how a window's first record ends, `]}` say, until the window's others are read with it
    while True:
        between = _BETWEEN.match(text, at)
        start = between.end() if between else at
        comma = between is not None and "," in between[0]
        if start < len(text) and text[start] == "]":
            if comma:
                raise ValueError("a comma stands before the list's end")
            if (text[start + 1 :] + stream.read()).strip(_SPACE):
                raise ValueError("something follows the list")
            return
        if ending and comma != first:
            records, end = _at_once(text, start, ending)
            ending = ""
            if records:
                yield from records
                at, first = end, False
                continue
        try:
            value, end = decoder.raw_decode(text, start)
            # A number near the window's end may go on behind it: `1e+` reads as 1.
            whole = end + 2 < len(text) or ended
        except json.JSONDecodeError:
            if ended or len(text) - at > _LONGEST:
                raise
            whole = False
        if whole:
            if comma == first:
                raise ValueError(f"a comma is {'too many' if first else 'missing'} between two entries")
            yield clean(value) if escaped and _SURROGATE.search(text, start, end) else value
            at, first = end, False
            if fresh and (found := _END.search(text, start, end)):
                ending, fresh = found[0], False
        else:
            # Twice as much each time, so that a long record costs its length and not its square.
            more = stream.read(max(_WINDOW, len(text) - at))
            text, at, ended = text[at:] + more, 0, not more
            escaped = _SURROGATE.search(text) is not None  # seldom, so that the records need not be looked through
            fresh = True


def _at_once(text: str, start: int, ending: str) -> tuple[list[Any], int]:
    """As many whole records from `start` on as can be seen, in half the time that they take one by one.

    What parses as a list ends where a record does, for brackets and quotes come out even nowhere else.

    Args:
        text: a window.
        start: where in it a record begins.
        ending: how a record probably ends; turns of its conversations may end so too.

    Returns:
        The records and where the last one ends; none where the window holds what `json` reads otherwise (an id of more
        than 64 bits, NaN, half a character) or what is no JSON, which `json` can then tell about.
    """
    stop = len(text)
    for _ in range(_TRIES):
        stop = text.rfind(ending, start, stop)
        if stop < 0:
            break
        end = stop + len(ending)
        try:
            records = orjson.loads(f"[{text[start:end]}]")
        except ValueError:
            continue
        sound = all(type(record) is dict and type(record.get("id")) in _IDS for record in records)
        return (records, end) if sound else ([], start)
    return [], start


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
