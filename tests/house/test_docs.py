"""The documentation: every block runs, in the order of the site; the site is made without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PYTHON_WITH_OTHERS = {"docs/howto/own-models.md", "docs/howto/other-trainers.md"}
"""Pages whose Python is run by a test of its own."""


def pages() -> list[Path]:
    """In the order of the navigation."""
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text())

    def files(entries: list[object]) -> list[str]:
        found = []
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                found += files(value) if isinstance(value, list) else [str(value)]
        return found

    return [ROOT / "docs" / name for name in files(yaml.safe_load(text)["nav"])]


def blocks(path: Path, languages: str = "sh|python") -> list[tuple[str, str]]:
    """Language and text of each block of a page."""
    return re.findall(rf"```({languages})\n(.*?)```", path.read_text(), re.DOTALL)


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody can find is no documentation."""
    assert sorted(pages()) == sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param([ROOT / "README.md"], id="README", marks=pytest.mark.slow),
        pytest.param(pages(), id="site", marks=pytest.mark.long),
    ],
)
def test_every_block_runs(chosen: list[Path], tmp_path: Path) -> None:
    """Shell and Python of a page, or of all, one after another in one folder, as a reader would; the demo with few
    scenes. Catches a command that needs what only another page makes."""
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": tools, "HF_HOME": str(tmp_path / "hf"), "COLUMNS": "120"}

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    shown = run(["pad", "demo", "--scenes", "8", "--steps", "4", "--engine", "local"])
    assert "all shards are whole" in shown
    assert (tmp_path / "demo-out/sheet.png").exists()
    ran = 0
    for page in chosen:
        for language, block in blocks(page):
            if language == "sh" and not block.startswith("make "):
                ran += block.count("pad ")
                run(["bash", "-euc", block])
            elif language == "python" and page.relative_to(ROOT).as_posix() not in PYTHON_WITH_OTHERS:
                run([sys.executable, "-c", block])
    assert ran >= (30 if len(chosen) > 1 else 6)
    assert (tmp_path / "trained" / "hf" / "model.safetensors").exists()
    assert (tmp_path / "report" / "index.html").exists()


def test_the_readme_begins_with_its_two_commands() -> None:
    """They are all that a newcomer types."""
    first = blocks(ROOT / "README.md")[0][1]
    assert first.startswith("make demo") and "make test" in first


def test_links_of_the_readme_lead_somewhere() -> None:
    """A moved page would leave readers at an error of the forge."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 10
    assert not [link for link in local if not (ROOT / link).exists()]


def test_the_site_is_made(tmp_path: Path) -> None:
    """Strictly: a broken link, a missing page or a docstring that can't be read is an error (with --quiet, mkdocs does
    not count them). All commands are there."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr + done.stdout
    reference = (tmp_path / "site/cli/index.html").read_text()
    assert "--min-predicted-iou" in reference and "pad export hub" in reference
    found = (tmp_path / "site/search/search_index.json").read_text()
    assert all(word in found for word in ("A100", "threshold", "box_threshold")), "people search for these"
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(
            r'(src|href)="https?://(?!arxiv|huggingface|squidfunk)[^"]+\.(js|css|woff2?)"', page.read_text()
        )
