"""The checks of `pad doctor`. No check downloads or writes; an exception in a check becomes a finding."""

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


Findings = Iterator[Finding]


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, such as `1.25 GB`."""
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
