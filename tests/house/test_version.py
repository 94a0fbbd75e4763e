"""One version everywhere: package, citation, changelog, images."""

from __future__ import annotations

import re
from pathlib import Path

from pad_pipeline import __version__
from tests.conftest import ROOT


def test_every_file_names_this_version() -> None:
    """Catches an image of another version in a cluster's file, and a release without a section in the changelog."""
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    files = [path for path in (ROOT / "docker").rglob("*") if path.is_file()]
    named = {path.name: set(re.findall(r"\bpad:(\d+\.\d+\.\d+)", Path(path).read_text())) for path in files}
    assert any(named.values())
    assert all(found <= {__version__} for found in named.values()), named
