"""The checks of `pad doctor`. No check downloads or writes anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """One line that `pad doctor` prints."""

    check: str
    """The thing that was checked."""
    state: State
    found: str
    """The result of the check."""
    remedy: str = ""
    """The steps that solve the problem; empty if there is none."""


Findings = Iterator[Finding]


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, such as `1.25 GB`."""
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
