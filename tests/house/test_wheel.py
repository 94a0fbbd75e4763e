"""The wheel alone, in an environment of its own and outside the checkout: everything that is needed travels in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("pad_pipeline", "stages", "workflows")
"""Of the checkout. `pad_pipeline/stages` and `pad_pipeline/workflows` are links to the other two."""


def run(*command: object, cwd: Path) -> str:
    """A command that must succeed, without the checkout on any path."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))
    }
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def copied(names: list[str], source: Path, target: Path) -> Path:
    """A part of the checkout as git has it: setuptools leaves its build folders beside what it builds."""
    for name in names:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True, ignore=ignored)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pad's wheel and the example's, built with the setuptools that is here."""
    folder = tmp_path_factory.mktemp("wheels")
    source = copied([*FOLDERS, "pyproject.toml", "README.md", "LICENSE"], ROOT, folder / "source")
    example = copied(["pyproject.toml", "pad_onnx_detector.py"], ROOT / "examples/onnx_detector", folder / "example")
    for project in (source, example):
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist"]
        run(sys.executable, "-m", "pip", "wheel", *options, project, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def outside(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheels installed. The packages that they depend on are not fetched again:
    a `.pth` lends those of the environment that runs the tests, without its own pad, which comes in by another `.pth`
    that is not read from there. So it shows what is in the wheel, and not that its list of requirements is whole."""
    folder = tmp_path_factory.mktemp("outside")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", *sorted(wheels.glob("*.whl")), cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = run(python, "-c", "import pad_pipeline.workflows as found; print(found.__file__)", cwd=folder)
    assert found.startswith(str(folder)), "the checkout was imported, and not the wheel"
    return folder


def test_the_wheel_installs_one_name_and_every_file(wheels: Path) -> None:
    """A second name could overwrite another package's: `workflows` is llama-index's too. Models, recipes and lists are
    package data: one that is not named in pyproject.toml is missed by nobody in a checkout."""
    (wheel,) = wheels.glob("pad_pipeline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in inside} == {"pad_pipeline"}
    files = {
        (path.relative_to(ROOT) if folder == "pad_pipeline" else "pad_pipeline" / path.relative_to(ROOT)).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "build"} & set(path.parts)
    }
    assert len(files) > 200 and files == inside


@pytest.mark.slow
def test_the_other_folders_can_not_be_imported_by_their_own_names(outside: Path) -> None:
    """Neither of the wheel, nor in the checkout, where Python would find the folders themselves."""
    for name in ("stages", "workflows"):
        code = f"import importlib.util as found; print(found.find_spec('{name}'))"
        assert run(outside / "venv/bin/python", "-c", code, cwd=outside).strip() == "None"
        code = f"try: import {name}\nexcept ImportError as error: print(error)"
        assert "import it by that name" in run(sys.executable, "-c", code, cwd=ROOT)


@pytest.mark.long
def test_the_miniature_builds_and_the_demo_runs(outside: Path) -> None:
    """`pad demo` and `pad build` read the shipped models from the installed package."""
    pad = outside / "venv/bin/pad"
    assert "--scenes" in run(pad, "demo", "--help", cwd=outside)
    run(pad, "miniature", "draw", "--count", 4, "--out", "world", cwd=outside)
    build = ["--images", "world/images", "--models", "miniature", "--engine", "local", "--out", "shards"]
    run(pad, "build", *build, cwd=outside)
    run(pad, "verify", "shards", "--deep", cwd=outside)
    run(pad, "demo", "--scenes", 8, "--steps", 2, "--engine", "local", "--out", "demo", cwd=outside)
    assert (outside / "demo/sheet.png").is_file()


@pytest.mark.long
def test_the_example_works_by_its_entry_point(outside: Path) -> None:
    """Installed beside pad, its detector is found by name; its own test passes there."""
    tests = copied(["tests"], ROOT / "examples/onnx_detector", outside / "example")
    python = outside / "venv/bin/python"
    points = "from importlib.metadata import entry_points as e; print([p.value for p in e(group='pad.detectors')])"
    assert json.loads(run(python, "-c", points, cwd=outside).replace("'", '"')) == ["pad_onnx_detector:OnnxDetector"]
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tests)
    assert "2 passed" in said
