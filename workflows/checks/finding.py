"""The result of a check of `pad doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """One result of a check."""

    check: str
    """The name of the thing that was checked."""
    state: State
    found: str
    """The result in words."""
    remedy: str = ""
    """What the user can do; empty if there is nothing to do."""

    def on_lines(self) -> Finding:
        """Return the finding without line breaks and control characters, which texts of libraries may contain."""
        return self._replace(found=_line(self.found), remedy=_line(self.remedy))


Findings = Iterator[Finding]


def _line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, such as `1.25 GB`."""
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
