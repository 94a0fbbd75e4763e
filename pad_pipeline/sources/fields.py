"""The one rule for what the fields of a record mean, whatever file holds it: image, id, caption and conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.records import Place, Planned
from pad_pipeline.retries import ask, is_not_found
from pad_pipeline.sources.base import Tally, image_store, location_problem, parse_json, path_problem, should_be
from pad_pipeline.sources.conversations import caption_of, read_conversations, without_mark
from pad_pipeline.storage import REMOTE_SCHEMES, is_url, url_problem
from pad_pipeline.stores import attempt

NAMES = {
    "image": (
        "image", "images", "path", "file_name", "filename", "file", "image_path", "image_file", "img", "img_path",
        "jpg", "png", "url", "image_url",
    ),
    "id": ("id", "key", "__key__", "image_id", "uid"),
    "caption": (
        "caption", "recaption", "re_caption", "vlm_caption", "long_caption", "short_caption", "captions", "text", "txt",
        "alt", "alt_text", "description", "top_caption", "original_caption", "org_caption",
    ),
    "conversations": ("conversations", "messages", "texts", "conversation", "turns"),
}  # fmt: skip
"""Field -> the names that it has in public data sets, in any case. Of the names that a record has, the first is
taken. A caption that a model wrote goes before the original text of the web page."""
JSON = "json"
"""The column of a table with further fields of a record, as JSON or as an object."""
_MOST_NAMES = 50
"""The most names of unused texts that are kept of a record, so that memory does not grow with the records."""


class Embedded(NamedTuple):
    """An image whose bytes stand in the list itself."""

    name: str
    """The file name that the list gives for it, or one made of the list's name and the row's number."""
    source: str
    """How messages call it: the list and the row."""
    place: Place


class Record(NamedTuple):
    """What one record says."""

    name: str
    """The id; empty if the record has none."""
    images: list[str | Embedded]
    """Paths or URLs as written, or images inside the list."""
    caption: str
    conversations: list[dict[str, str]]
    problem: str = ""
    """Why the record can't be used; empty if it can."""


class Fields:
    """Reads records of one list, and turns them into planned images.

    Args:
        root: folder or URL that the paths of images are relative to.
        given: the same folder as the user wrote it, where links are not resolved.
        counts: gets the numbers of records that were left out or changed.
        named: field -> the name that it has in this list; other fields are found by `NAMES`.
        unit: what the list calls a record: `record`, `row` or `line`.
        file: the list, for messages, if there are several.
    """

    def __init__(
        self,
        root: str,
        given: str | Path,
        counts: Tally,
        named: Mapping[str, str] | None = None,
        unit: str = "record",
        file: str = "",
    ) -> None:
        self.root, self.counts, self.named, self.unit = root, counts, dict(named or {}), unit
        self._units = "rows" if unit == "line" else f"{unit}s"
        self._in = f" of {file}" if file else ""
        self._roots = list(dict.fromkeys(path.rstrip("/") + "/" for path in (root, os.path.abspath(given))))  # noqa: PTH100
        self._find = lru_cache(256)(self.find)
        self._slashes: bool | None = None
        self.has_texts = False
        """Whether the names that `checked` saw have captions or conversations."""

    def find(self, there: Sequence[str]) -> tuple[str | None, ...]:
        """Return the names of image, id, caption and conversations among `there`; None for a field that is missing.

        Where no known name of a caption is there, the first name that ends in `caption` is taken.
        """
        in_lower_case = {name.strip().lower(): name for name in reversed(there)}
        captions = [name for name in there if name.strip().lower().endswith("caption")]
        named = {field: (name,) for field, name in self.named.items() if field in NAMES}
        candidates = NAMES | {"caption": (*NAMES["caption"], *captions)} | named
        return tuple(
            next(
                (
                    name if name in there else in_lower_case[name.lower()]
                    for name in candidates[field]
                    if name in there or name.lower() in in_lower_case
                ),
                None,
            )
            for field in NAMES
        )

    def alternatives(self, there: Sequence[str]) -> list[list[str]]:
        """Return the names of each field among `there`, the preferred one first: where it has no value, the next one is
        taken."""
        left, found = list(there), [list[str]() for _ in NAMES]
        while any(names := self.find(left)):
            for field, name in zip(found, names, strict=True):
                if name is not None:
                    field.append(name)
            left = [name for name in left if name not in names]
        return found

    def checked(self, there: Sequence[str], origin: str) -> tuple[str | None, ...]:
        """Return what `find` does, for a list whose records all have the names `there`; and `JSON`, if it is there.

        Raises:
            UserError: the list lacks a field that the user named, or has no image, or has two fields of one name.
        """
        listed = ", ".join(there[:50]) or "none"
        found = dict(zip(NAMES, self.find(there), strict=True))
        for field, name in self.named.items():
            if field not in NAMES:
                rule = f"{field!r} is none of {', '.join(NAMES)} (the columns are: {listed})"
                raise UserError("columns", f"{field}={name}", rule, "correct it")
            if found[field] is None and (field == "image" or JSON not in there):
                rule = f"{origin} has no such column; it has: {listed}"
                raise UserError("columns", f"{field}={name}", rule, "name one of these")
        if found["image"] is None:
            rule = f"it has no column {', '.join(NAMES['image'])}; its columns are: {listed}"
            raise UserError("images", origin, rule, "say which one holds the image: `columns` image=NAME")
        if twice := [name for name in found.values() if name is not None and there.count(name) > 1]:
            raise UserError("images", origin, f"it has more than one column {twice[0]!r}", "rename all but one")
        self.has_texts = any(name in there for name in (found["caption"], found["conversations"], JSON))
        return (*found.values(), JSON if JSON in there and JSON not in found.values() else None)

    def texts(self, value: Any) -> Record:
        """Read id, caption and conversations of an image that lies elsewhere, from parsed JSON: an object, or a list of
        turns alone."""
        if isinstance(value, list):
            value = {"conversations": value}
        return self.read(
            {name: part for name, part in value.items() if name not in NAMES["image"]}
            if isinstance(value, dict)
            else value
        )

    def texts_beside(self, value: Callable[[], Any], what: str, where: str) -> Record:
        """Read the texts of an image from the JSON beside it, which `value` parses. JSON that can't be read is counted
        as `what`, and its texts are left out."""
        try:
            found = self.texts(value())
            problem = found.problem
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            self.counts.note(f"{what} that can't be read, whose texts are left out", f"{where}: {problem}")
            return Record("", [], "", [])
        return found

    def with_facts(self, record: Record, facts: Any, number: int) -> Record:
        """Return a record of a table with what it lacks, from its column `json`, parsed or as text. Data sets that were
        WebDataset tars have the JSON of a sample there."""
        if record.problem or not is_there(facts):
            return record
        where = f"{self.unit} {number}{self._in}"
        parsed = partial(parse_json, facts) if isinstance(facts, str) else lambda: facts
        more = self.texts_beside(parsed, f"values of {JSON}", where)
        name, caption, turns = record.name or more.name, record.caption or more.caption, record.conversations
        return record._replace(name=name, caption=caption, conversations=turns or more.conversations)

    def rows(self, number: int, record: Any) -> list[Planned]:
        """Return the images of a record of parsed JSON, as `planned(read(record), number)` does.

        A record with one path and texts of the usual types takes a shorter way, because millions are read.
        """
        if type(record) is dict:
            of_image, of_id, of_caption, of_turns = self._find(tuple(record))
            image, name = of_image and record[of_image], of_id and record[of_id]
            caption, turns = of_caption and record[of_caption], of_turns and record[of_turns]
            usual = type(image) is str and type(name) is str and "." not in name and image[:1] != "["
            if usual and name and image and type(caption or "") is str:
                try:
                    conversations = read_conversations(turns) if type(turns) is list else []
                    text = without_mark(caption) if caption else caption_of(conversations)
                except ValueError:
                    text = ""  # `read` reports it
                if text and (type(turns) is list or turns is None):
                    source, problem = self.path(image)
                    planned = Planned(name, source, text, conversations)
                    planned.problem = problem  # a keyword would take as long as the other four
                    return [planned]
        return self.planned(self.read(record), number)

    def read(self, record: Any) -> Record:
        """Read a record of parsed JSON."""
        if not isinstance(record, dict):
            return Record("", [], "", [], should_be("it", record, "an object"))
        names = self._find(tuple(record))
        found = self.of(*map(record.get, names))
        if not (found.caption and found.images):  # a name without a value may hide another one
            names = self._find(tuple(name for name, value in record.items() if is_there(value)))
            again = self.of(*map(record.get, names)) if any(names) else found
            found = again if len(again.images) >= len(found.images) else found
        if not (found.caption or found.problem):
            self.other_texts([name for name, value in record.items() if isinstance(value, str)], names)
        return found

    def of(self, image: Any, name: Any = None, caption: Any = None, turns: Any = None) -> Record:
        """Make a record of the values of its four fields, of any type; None or NaN stands for a missing one."""
        # Nearly all values have the expected type, and millions are read: these are recognized without a call.
        try:
            identity, problem = name if type(name) is str and "." not in name else id_text(name), ""
        except ValueError as error:
            identity, problem = "", str(error)
        images: list[str | Embedded] = []
        try:
            images = [image] if type(image) is str and image[:1] != "[" else references(image)
            text = caption if type(caption) is str else "" if caption is None else caption_text(caption)
            text = without_mark(text) if text else ""
            conversations = [] if turns is None or turns != turns else read_conversations(turns)
        except ValueError as error:
            return Record(identity, images, "", [], str(error))
        return Record(identity, images, text or caption_of(conversations), conversations, problem)

    def other_texts(self, texts: Sequence[str], used: Sequence[str | None]) -> None:
        """Note the names of texts in a record without a caption, because one of them may be its caption."""
        if len(self.counts.other_texts) < _MOST_NAMES:
            self.counts.other_texts.update(dict.fromkeys(name for name in texts[:_MOST_NAMES] if name not in used))

    def planned(self, record: Record, number: int) -> list[Planned]:
        """Return the images of a record: none, one, or each of several.

        The texts of a record with several images are about all of them together, so none of its images gets them.
        """
        name, images, caption, turns, problem = record
        if len(images) == 1 and not problem:
            return [self._one(name, images[0], number, caption, turns)]
        where = f"{self.unit} {number}{self._in}"
        if problem:
            failed = self._one(name, images[0] if images else "", number)
            failed.problem = f"{where}: {problem}"
            return [failed]
        if not images:
            self.counts.note(f"{self._units} without an image", where)
            return []
        self.counts.note(f"{self._units} with several images, which are annotated without their texts", where)
        names = [f"{name}-{position}" if name else "" for position in range(len(images))]
        return [self._one(own, image, number) for own, image in zip(names, images, strict=True)]

    def _one(
        self, name: str, image: str | Embedded, number: int, caption: str = "", turns: Sequence[dict[str, str]] = ()
    ) -> Planned:
        source, problem = self.path(image)
        if isinstance(image, Embedded):
            return Planned(name or stem(image.name), source, caption, turns, place=image.place)
        return Planned(name or stem(source) or f"{self.unit}-{number}", source, caption, turns, problem=problem)

    def path(self, image: str | Embedded) -> tuple[str, str]:
        """Return the path below the root, or the URL, that `image` means; and the reason why it can't mean one.

        A backslash separates folders where that finds the file. An absolute path below the root is made relative.
        """
        if isinstance(image, Embedded):
            return image.source, ""
        scheme, mark, rest = image.partition("://")
        if mark:
            if scheme in REMOTE_SCHEMES:
                return image, ""
            if is_url(image):
                image = f"{scheme.lower()}{mark}{rest}"  # schemes have no case
                return image, url_problem(image)
        if image[:1] == "/":
            for root in self._roots:
                image = image.removeprefix(root).lstrip("/") if image.startswith(root) else image
        if "\\" in image and self._separates(image):
            image = image.replace("\\", "/")
            self.counts.note("paths with \\ in the place of /", image)
            if image[:1] == "/":
                return self.path(image)
        return image, path_problem(image)

    def _separates(self, image: str) -> bool:
        """Return whether a file is found only where `\\` in its path is read as `/`. In a store only the first such
        path is looked up, because each look costs a request."""
        changed = image.replace("\\", "/")
        if any(changed.startswith(root) for root in self._roots):
            return True
        if location_problem(changed):
            return False
        if not is_url(self.root):
            return not os.path.lexists(f"{self.root}/{image}") and os.path.lexists(f"{self.root}/{changed}")
        if self._slashes is None:
            store, path = image_store(f"{self.root}/{changed}")
            try:
                self._slashes = bool(ask(lambda: attempt(store, "info", path)))
            except Exception as error:  # any of the errors of the network and of the store's library
                self._slashes = False
                if not is_not_found(error):
                    rule = f"it can't be looked up whether it holds {changed!r} ({type(error).__name__}: {error})"
                    raise UserError("image_root", self.root, rule, "check the URL, and try again") from error
        return self._slashes


def below_list(folder: str, path: str) -> str:
    """Return a path relative to the folder of its list as one relative to the root of all lists; no other path is
    changed."""
    other = not path or is_url(path) or path[:1] in ("/", "\\") or path[1:2] == ":"
    return path if other or not folder else os.path.normpath(f"{folder}/{path}")


def is_there(value: Any) -> bool:
    """Return whether a field has a value: not null, NaN, an empty text or an empty list."""
    return value is not None and value == value and value != "" and value != []


def id_text(value: Any) -> str:
    """Return an id as text. Ids that mean the same are the same text: 7, 7.0, "7" and "7.0".

    Raises:
        ValueError: the value is no text and no number.
    """
    if isinstance(value, str):
        whole, point, zeros = value.partition(".")
        return whole if point and zeros and not zeros.strip("0") and whole.lstrip("-").isdecimal() else value
    if isinstance(value, list | tuple) and len(value) == 1:
        return id_text(value[0])
    if isinstance(value, list | tuple | dict):
        raise ValueError(should_be("id", value, "text or a number"))
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def references(value: Any) -> list[str | Embedded]:
    """Return the images that a field names: a path, a URL, a dictionary with `path` or `url`, or a list of them.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]" and '"' in value:
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            return [value]
    if isinstance(value, str | Embedded):
        return [value] if value else []
    if isinstance(value, list | tuple):
        return [one for entry in value for one in references(entry)]
    if isinstance(value, dict):
        for name in ("path", "url", "file_name", "image"):
            if isinstance(value.get(name), str) and value[name]:
                return [value[name]]
    if value is None or value != value:
        return []
    if isinstance(value, ValueError):
        raise value
    raise ValueError(should_be("image", value, "a path, a URL, or a list of them"))


def caption_text(value: Any) -> str:
    """Return a caption; of several captions, the first that is not empty.

    Raises:
        ValueError: it is no text.
    """
    if isinstance(value, list | tuple):
        return next(filter(None, map(caption_text, value)), "")
    if isinstance(value, dict):
        raise ValueError(should_be("caption", value, "text"))
    return value if isinstance(value, str) else "" if value is None or value != value else str(value)


def name_as_words(name: str) -> str:
    """Return a category's name as words: `aerosol_can`, which has no space, is `aerosol can`."""
    name = name.strip()
    return name if " " in name else name.replace("_", " ").strip()


def stem(image: str) -> str:
    """Return a path without its ending, or the last name in a URL without its ending."""
    if is_url(image):
        image = image.partition("?")[0].partition("#")[0].rpartition("/")[2]
    return os.path.splitext(image)[0]  # noqa: PTH122 (a Path for each of millions is slow)
