"""What a check of `pad doctor` found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """What one check found."""

    check: str
    """Names what was looked at."""
    state: State
    found: str
    remedy: str = ""

    def on_lines(self) -> Finding:
        """Without line breaks and control characters, whatever a library or a path brought along."""
        return self._replace(found=_line(self.found), remedy=_line(self.remedy))


Findings = Iterator[Finding]


def _line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def gigabytes(size: float) -> str:
    """A number of bytes, to be read."""
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
