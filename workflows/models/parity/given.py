"""Read what a user names for the comparison with upstream, and hide the GPUs for it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pad_pipeline.errors import UserError

SECTIONS = ("tagger", "detector", "segmenter")
"""The sections of models that can be compared with upstream."""


class Given(NamedTuple):
    """What a user names for the comparison, by section; "" is for all sections."""

    pythons: dict[str, str]
    """The Python that has upstream's packages; pad's own where none is named."""
    weights: dict[str, Path]
    """Upstream's weights, where they are not the file or folder that pad reads."""

    def python(self, section: str) -> str:
        """Return the Python for a section."""
        return self.pythons.get(section) or self.pythons.get("") or sys.executable


def parse_given(upstream_python: Sequence[str], upstream_weights: Sequence[str]) -> Given:
    """Read values of the forms `VALUE` and `SECTION=VALUE`.

    Raises:
        UserError: a Python or a file is not there, or weights have no section.
    """
    pythons = {section: _check_python(value) for section, value in map(_by_section, upstream_python)}
    weights = {}
    for entry in upstream_weights:
        section, value = _by_section(entry)
        path = Path(value).expanduser()
        if not section or not path.exists():
            rule = "there is no such file or folder" if section else "it has no section"
            raise UserError("upstream_weights", entry, rule, "write segmenter=FILE, detector=FILE or tagger=FILE")
        weights[section] = path.absolute()  # not resolved: the hub's cache links to names without an ending
    return Given(pythons, weights)


def _by_section(entry: str) -> tuple[str, str]:
    section, equals, value = entry.partition("=")
    return (section, value) if equals and section in SECTIONS else ("", entry)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Hide the GPUs from torch, if it did not look for them before: a GPU's sums differ in more than the last digit."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _check_python(python: str) -> str:
    """Return the path of a Python; raise `UserError` if there is no such program."""
    found = shutil.which(str(Path(python).expanduser()))
    if not found:
        remedy = "name a Python, such as upstream-env/bin/python"
        raise UserError("upstream_python", python, "there is no such program", remedy)
    return found
