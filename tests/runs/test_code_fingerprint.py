"""The fingerprint of the code changes with what decides a shard's bytes, and with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pad_pipeline.workflows.runs.fingerprint import code_fingerprint, fingerprint_of
from tests.conftest import ROOT


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, as a wheel installs it."""
    ignored = shutil.ignore_patterns("__pycache__", "models", "web")
    shutil.copytree(ROOT / "pad_pipeline", tmp_path / "pad_pipeline", ignore=ignored)
    return tmp_path / "pad_pipeline"


def edited(path: Path, change: Callable[[str], str]) -> None:
    """A file, changed."""
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def test_a_checkout_and_an_installed_package_have_the_same_code(package: Path) -> None:
    """Links in a checkout are folders in a wheel: a run begun in one could not be resumed in the other."""
    assert fingerprint_of(package) == code_fingerprint()


def test_prose_and_moves_change_nothing(package: Path) -> None:
    """Every docstring that was mended, and every file that was moved, made all unfinished runs refuse."""
    before = fingerprint_of(package)
    edited(package / "geometry.py", lambda text: text.replace('    """', '    """Other words. ', 1))
    edited(
        package / "shards/writer.py", lambda text: text.replace("\n\n\n", "\n\n\n# a comment\n\n", 2) + "  # an end\n"
    )
    edited(package / "stages/tag.py", lambda text: text.replace("pad_pipeline.images", "pad_pipeline.elsewhere"))
    (package / "geometry.py").rename(package / "shapes.py")
    mover = (package / "masks.py").read_text().split("\n\n\n")
    (package / "masks.py").write_text("\n\n\n".join(mover[:-1]) + "\n")
    (package / "boxes.py").write_text(mover[-1])
    edited(package / "training/losses.py", lambda text: text.replace("return", "return 2 *", 1))
    assert fingerprint_of(package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("geometry.py", "np.uint8(255)", "np.uint8(254)"),
        ("stages/tag.py", "sigmoid()", "tanh()"),
        ("workflows/runs/chains.py", "if edits.changes:", "if not edits.changes:"),
        ("workflows/runs/shard_io.py", "!=", "=="),
        ("workflows/engine/chain.py", "item = operation(item)", "item = operation(operation(item))"),
        ("stages/unboxable.txt", "\n", "\nchair\n"),
        ("shards/writer.py", "import tarfile", "import othertar as tarfile"),
    ],
)
def test_what_decides_bytes_changes_it(package: Path, name: str, old: str, new: str) -> None:
    """Another number, condition, import, chain or list makes other shards, which may not join those of a run."""
    before = fingerprint_of(package)
    edited(package / name, lambda text: text.replace(old, new, 1))
    assert fingerprint_of(package) != before
