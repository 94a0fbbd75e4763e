"""Who may import whom: arrows between rooms run down only, and there is no circle. See docs/architecture.md.

A room is a folder or a module that lies directly in a folder. Imports inside functions count as well.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("workflows", "stages", "pad_pipeline")
"""From top to bottom."""
ORDER = {
    "workflows": "api cli commands checks miniature runs models learning engine results toml cards",
    "stages": "custom tag captions concept ground owl omdet segment patchify correct annotate edit restore box_stage "
    "decode settings dino sam ram base spans boxes rle patch_grid compute edit_settings",
    "pad_pipeline": "analysis training exports report quality miniature verify plan duplicates sources shards labels "
    "tables llms pretrained weights hub_errors pins remote_tensors transfers measures evaluation records facts storage "
    "listing stores retries addresses parquet roles masks images geometry gpus packages threads machine console errors "
    "choices",
}
"""The rooms of each folder: each may import those to its right. A new room takes its place here."""
MOST_ROOMS, MOST_ARROWS = 12, 30
"""In `workflows`, so that it stays a house and does not become a corridor."""


def name_of(path: Path) -> str:
    """`stages/sam/hub.py` -> `stages.sam.hub`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    name_of(path): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(parent.is_symlink() for parent in path.parents)
}


def imports(path: Path) -> Iterator[str]:
    """All that a module imports; of `from a import b` both `a.b` and `a`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def imported(path: Path) -> Iterator[str]:
    """Our own modules that a module imports, by their folders' names."""
    for name in imports(path):
        for folder in ("stages", "workflows"):
            if name.startswith(f"pad_pipeline.{folder}."):
                name = name.removeprefix("pad_pipeline.")
        if name in MODULES:
            yield name


ARROWS = [(module, other) for module, path in MODULES.items() for other in set(imported(path)) if other != module]
INSIDE = sorted({str(path.parent.relative_to(ROOT)).replace("/", ".") for path in MODULES.values()})


def rooms_between(folder: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Arrows between rooms of a folder, each with a pair of modules that makes it."""
    found = {}
    for module, other in ARROWS:
        if module.startswith(f"{folder}.") and other.startswith(f"{folder}."):
            pair = tuple(name.removeprefix(f"{folder}.").partition(".")[0] for name in (module, other))
            if pair[0] != pair[1]:
                found[pair[0], pair[1]] = (module, other)
    return found


def test_the_three_folders_stand_on_each_other() -> None:
    """`pad_pipeline` that imports a stage, or a stage that imports a workflow, could not be used without the rest."""
    for module, other in ARROWS:
        here, there = (FOLDERS.index(name.partition(".")[0]) for name in (module, other))
        assert here <= there, f"{module} imports {other}, which lies above it: move what it needs down, or itself up"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_arrow_runs_up(folder: str) -> None:
    """A lower room that imports a higher one, and a room that nobody has given a place."""
    order = ORDER[folder].split()
    rooms = {name.removeprefix(f"{folder}.").partition(".")[0] for name in MODULES if name.startswith(f"{folder}.")}
    assert rooms == set(order), "give each room its place in ORDER above, and in docs/architecture.md"
    for (here, there), (module, other) in rooms_between(folder).items():
        told = f"{module} imports {other}, but {folder}/{here} lies below {folder}/{there}: move what both need down"
        assert order.index(here) < order.index(there), told


@pytest.mark.parametrize("folder", INSIDE)
def test_no_folder_holds_a_circle(folder: str) -> None:
    """Two rooms that need each other can't be read, tested or changed one by one."""
    needs: dict[str, set[str]] = defaultdict(set)
    pairs = rooms_between(folder)
    for here, there in pairs:
        needs[here].add(there)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        steps = [" imports ".join(pairs[pair]) for pair in pairwise(circle) if pair in pairs]
        pytest.fail(f"a circle in {folder}: {'; '.join(steps)}. Move what they share into a room below them")


def test_workflows_is_a_house_and_no_corridor() -> None:
    """It was 33 rooms and 90 arrows once, and nobody could say where a new thing belongs."""
    arrows = rooms_between("workflows")
    assert len(ORDER["workflows"].split()) <= MOST_ROOMS and len(arrows) <= MOST_ARROWS, sorted(arrows)


def test_stages_and_data_know_nothing_of_ray() -> None:
    """They run on GPU boxes and in readers that have no Ray."""
    for module, path in MODULES.items():
        names = {name.partition(".")[0] for name in imports(path)}
        assert module.startswith("workflows.") or "ray" not in names, f"{module} imports Ray: only workflows may"


def test_the_package_does_not_need_the_repository() -> None:
    """Examples, tests and benchmarks are not installed with it."""
    for module, path in MODULES.items():
        names = {name.partition(".")[0] for name in imports(path)}
        assert not names & {"examples", "tests", "benchmarks"}, f"{module} imports what is not installed"
