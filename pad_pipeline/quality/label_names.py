"""Maps the labels of a run, which can be any words, to the categories of human annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.quality.wordnet import WordNet
from pad_pipeline.sources.base import read_json

How = Literal["map", "exact", "plural", "wordnet"]
"""How a category was found: in the user's map; by the same name, apart from capitals, hyphens and underscores; by the
singular or the plural of the name; as the same thing, or a kind of it, in WordNet."""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "oxen": "ox", "dice": "die",
}  # fmt: skip


class Match(NamedTuple):
    """The category of a label."""

    category: str
    how: How


class LabelNames:
    """Finds the category of each label. The ways of `How` are tried in their order, and the first one that gives a
    category is used."""

    def __init__(
        self, categories: Iterable[str], label_map: Mapping[str, str] | None = None, wordnet: WordNet | None = None
    ) -> None:
        """Take the categories of the truth.

        Args:
            categories: all categories that people looked for.
            label_map: label -> category; an empty category means none.
            wordnet: WordNet, for labels that have no category otherwise.

        Raises:
            UserError: the label map names a category that there is not.
        """
        self.categories = frozenset(categories)
        self._map, self._wordnet = label_map or {}, wordnet
        if unknown := sorted({*self._map.values()} - self.categories - {""}):
            rule = f"it names categories that there are not: {', '.join(unknown[:5])}"
            raise UserError("label_map", unknown[0], rule, "correct them, or name all categories with `categories`")
        self._plain: dict[str, str] = {}
        self._single: dict[str, str] = {}
        for category in sorted(self.categories):
            self._plain.setdefault(_plain(category), category)
        for name, category in self._plain.items():
            for form in _singulars(name):
                self._single.setdefault(form, category)
        self._known: dict[str, Match | None] = {}

    def __call__(self, label: str) -> Match | None:
        """Return the category of a label; None if it has none."""
        if label not in self._known:
            self._known[label] = self._find(label)
        return self._known[label]

    def _find(self, label: str) -> Match | None:
        if label in self._map:
            return Match(self._map[label], "map") if self._map[label] else None
        if label in self.categories:
            return Match(label, "exact")
        name = _plain(label)
        if name in self._plain:
            return Match(self._plain[name], "exact")
        singulars = _singulars(name)
        for form in singulars:
            if form in self._single:
                return Match(self._single[form], "plural")
        if self._wordnet:
            for form in singulars:
                for group in self._wordnet.kinds(form):
                    for word in map(_plain, group):
                        if word in self._plain:
                            return Match(self._plain[word], "wordnet")
        return None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _singulars(name: str) -> list[str]:
    """Return a name, and what it may be the plural of, by its last word. Some forms are no words, but match nothing."""
    first, space, last = name.rpartition(" ")
    forms = [last]
    if last in _IRREGULAR:
        forms.append(_IRREGULAR[last])
    elif last.endswith("men"):
        forms.append(f"{last[:-3]}man")
    elif len(last) > 3 and last.endswith("s") and not last.endswith("ss"):
        forms.append(last[:-1])
        if last.endswith("ies"):
            forms.append(f"{last[:-3]}y")
        if last.endswith("ves"):
            forms += [f"{last[:-3]}f", f"{last[:-3]}fe"]
        if last.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.append(last[:-2])
    return [first + space + form for form in forms]


def checked_label_map(found: Any, shown: object = "") -> dict[str, str]:
    """Return an object that maps labels to others; raise `UserError`, with the value `shown`, if it does not."""
    if not isinstance(found, dict) or not all(isinstance(name, str) for pair in found.items() for name in pair):
        rule, remedy = "it should be an object of texts", 'give {"puppy": "dog", "blur": ""}'
        raise UserError("label_map", shown or type(found).__name__, rule, remedy)
    return found


def read_label_map(path: Path) -> dict[str, str]:
    """Read a JSON of old and new labels, or of labels and categories; raise `UserError` if it is none."""
    return checked_label_map(read_json("label_map", path), path)


def read_categories(path: Path) -> frozenset[str]:
    """Read the names of categories: a COCO JSON's, or the lines of a text file.

    Raises:
        UserError: the file can't be read, or holds no category.
    """
    remedy = "give a JSON in COCO's format, or a text file with one category a line"
    if path.suffix.lower() == ".json":
        data = read_json("categories", path)
        entries = data.get("categories") if isinstance(data, dict) else None
        entries = entries if isinstance(entries, list) else []
        names = {entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)}
    else:
        try:
            names = {line.strip() for line in path.read_text("utf-8-sig").splitlines()} - {""}
        except (OSError, UnicodeDecodeError) as error:
            rule = f"it can't be read ({getattr(error, 'strerror', None) or type(error).__name__})"
            raise UserError("categories", path, rule, remedy) from error
    if not names:
        raise UserError("categories", path, "there is no category in it", remedy)
    return frozenset(names)
