"""No text of ours contains a word that docs/concepts.md bans in "Words that we do not use".

Comments, docstrings and texts of the three packages are checked, and the documentation. Names in code are not.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

GLOSSARY = ROOT / "docs" / "concepts.md"
TITLE = "## Words that we do not use\n"
NOT_YET: dict[str, str] = {}
"""Files that still contain banned words, with these words. Rewrite the texts, then delete the line."""


class Ban(NamedTuple):
    """One row of the table."""

    words: list[str]
    """Banned words and phrases; `*` stands for any letters."""
    instead: str
    exceptions: list[str]
    """Phrases in which the words may stand."""


class Find(NamedTuple):
    """A banned word in a text."""

    line: int
    word: str
    instead: str


@cache
def bans() -> list[Ban]:
    """Read the table of the glossary."""
    table = GLOSSARY.read_text("utf-8").partition(TITLE)[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] == "| `"]
    return [Ban(re.findall("`(.+?)`", words), instead, re.findall("`(.+?)`", but)) for words, instead, but in rows]


def expression(word: str) -> str:
    """Return a regular expression for a banned word or phrase of the table."""
    return re.escape(word).replace(r"\*", r"\w*").replace(r"\ ", r"\s+")


@cache
def pattern() -> re.Pattern[str]:
    """Match any banned word as a whole word; not in `name.word`, `word()`, `folder/word` and `word.py`."""
    words = "|".join(expression(word) for ban in bans() for word in ban.words)
    return re.compile(rf"(?<![\w./-])(?:{words})(?![\w(]|\.\w)", re.IGNORECASE)


@cache
def exceptions() -> re.Pattern[str]:
    return re.compile("|".join(re.escape(phrase) for ban in bans() for phrase in ban.exceptions))


def instead_of(word: str) -> str:
    """Return the replacement of a word that `pattern` matched."""
    return next(
        ban.instead for ban in bans() for banned in ban.words if re.fullmatch(expression(banned), word, re.IGNORECASE)
    )


def finds(parts: Iterable[tuple[int, str]]) -> Iterator[Find]:
    """Yield the banned words in texts, each of which is given with the number of its first line."""
    for first, text in parts:
        text = exceptions().sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        for match in pattern().finditer(text):
            yield Find(first + text.count("\n", 0, match.start()), match[0], instead_of(match[0]))


def texts_of_code(code: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of Python code, f-strings without their expressions."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = tokenize.tok_name[token.type]  # Python 3.12 splits an f-string into tokens, 3.11 has it as one
        if kind in ("COMMENT", "FSTRING_MIDDLE"):
            yield token.start[0], token.string
        elif kind == "STRING":
            expressions = r"\{[^{}]*\}" if "f" in token.string[:2].lower() else "$^"
            yield token.start[0], re.sub(expressions, lambda match: "\n" * match[0].count("\n"), token.string)


def texts_of_page(page: str) -> Iterator[tuple[int, str]]:
    """Yield the text of a Markdown page, without the table of banned words and without examples of what is wrong."""
    lines, banned = [], False
    for line in page.splitlines(keepends=True):
        if line.startswith("## "):
            banned = line == TITLE
        lines.append("\n" if banned or line.startswith("no: ") else line)
    yield 1, "".join(lines)


def finds_in(path: Path) -> list[Find]:
    """Return the banned words in the texts of a file."""
    content = path.read_text("utf-8")
    if not pattern().search(content):  # most files: tokenizing all of them would take seconds
        return []
    return list(finds(texts_of_code(content) if path.suffix == ".py" else texts_of_page(content)))


def files() -> list[Path]:
    """Return the Python files of the three packages, and the pages."""
    code = [path for folder in ("pad_pipeline", "stages", "workflows") for path in (ROOT / folder).rglob("*.py")]
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker/README.md"]
    return sorted(path for path in code if not any(parent.is_symlink() for parent in path.parents)) + sorted(pages)


def test_no_text_contains_a_banned_word() -> None:
    """Catches a second word for one thing, British spelling, and phrases that are read twice."""
    problems = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        not_yet = NOT_YET.get(name, "").split(", ")
        problems += [
            f"{name}:{find.line}: {find.word!r}: write {find.instead}"
            for find in finds_in(path)
            if " ".join(find.word.lower().split()) not in not_yet
        ]
    assert not problems, "\n".join(["docs/concepts.md bans these words:", *problems])


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("code.py", '"""A docstring.\n\nIt shows a Picture."""\n', [3]),
        ("code.py", 'x = 1  # centre of the box\ny = f"{x} pictures"\n', [1, 2]),
        ("code.py", 'picture = 1\nz = f"{picture} is fine"\nprint(a.colour)  # of `a.colour`\n', []),
        ("code.py", '"""Ask "What is in the picture?" of each image."""\n', []),
        ("page.md", "# Title\n\nThe neighbours of a box.\nno: a picture\nAll, but\nfor one.\n", [3, 5]),
        ("page.md", TITLE + "\n| `picture` |\n\n## Next\n\nA picture.\n", [7]),
    ],
)
def test_a_planted_word_is_reported_with_its_line(tmp_path: Path, name: str, content: str, lines: list[int]) -> None:
    """Catches a check that finds nothing, takes names for words, or reports the wrong line."""
    (tmp_path / name).write_text(content, "utf-8")
    assert [find.line for find in finds_in(tmp_path / name)] == lines


def test_the_table_is_read_whole() -> None:
    """Catches a row that is not understood, and a word that is banned twice with two replacements."""
    words = [word for ban in bans() for word in ban.words]
    assert len(words) > 40 and len(words) == len(set(words)) and all(ban.instead for ban in bans())
