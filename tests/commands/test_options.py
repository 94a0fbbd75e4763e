"""Options are those of the settings: help, range and default are written once, and `--help` imports little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from typer.testing import CliRunner

from pad_pipeline.geometry import View
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.sources.selection import Selection
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.training.job import Job
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.workflows.cli import app
from pad_pipeline.workflows.runs.options import RunOptions

SETTINGS: dict[str, list[type[BaseModel]]] = {
    "build": [View, RunOptions],
    "import coco": [View, RunOptions],
    "retarget": [View, EditSettings, RunOptions],
    "filter": [Selection, RunOptions],
    "merge": [View, RunOptions],
    "train": [Job, TrainSettings],
    "report": [ReportSettings],
}
"""The settings that a command fills in."""
NOT_THE_SETTING = {("settings", Job), ("llm", TrainSettings)}
"""Parameters that are called like a setting and are another thing: a file with settings; the LLM itself."""


def command(name: str) -> Any:
    found: Any = typer.main.get_command(app)
    for part in name.split():
        found = found.commands[part]
    return found


def with_field(name: str, settings: type[BaseModel]) -> Iterator[tuple[Any, Any]]:
    """Each option of a command of which a setting exists, and the setting's field."""
    for parameter in command(name).params:
        field = settings.model_fields.get(parameter.name)
        if field and parameter.param_type_name == "option" and (parameter.name, settings) not in NOT_THE_SETTING:
            yield parameter, field


CASES = [pytest.param(name, one, id=f"{name} {one.__name__}") for name, models in SETTINGS.items() for one in models]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_an_option_has_the_help_and_the_range_of_its_setting(name: str, settings: type[BaseModel]) -> None:
    """Two sentences for one thing drift apart, and so do two ranges."""
    found = list(with_field(name, settings))
    assert len(found) >= 3
    for parameter, field in found:
        assert field.description, f"{parameter.name} needs a docstring beneath the field"
        assert parameter.help == " ".join(field.description.split())
        limits = {end: getattr(limit, end) for limit in field.metadata for end in ("ge", "le") if hasattr(limit, end)}
        for end, own in (("ge", parameter.min), ("le", parameter.max)):
            assert end not in limits or own == limits[end], parameter.name


def test_help_names_options_as_the_command_has_them() -> None:
    """Catches `size`, a setting, in the help of a command whose option is --view-size; and a value of an option, such
    as `sample`, that is taken for an option of that name."""
    shown = " ".join(
        CliRunner().invoke(app, ["build", "--help"], env={"COLUMNS": "400"}, prog_name="pad").output.split()
    )
    assert "its short edge is resized to --view-size, then" in shown and "`size`" not in shown
    assert "`sizes`: sizes too. `sample`: the sha256 of 64 images too." in shown


def test_defaults_are_the_settings_or_said_to_be_others() -> None:
    """Few options have another default on the command line; they are named here."""
    others = set()
    for name, models in SETTINGS.items():
        for parameter, field in (found for one in models for found in with_field(name, one)):
            if parameter.default is not None and not parameter.required and parameter.default != field.default:
                others.add((name, parameter.name))
    assert others == {("build", "engine"), ("train", "stage")}


@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("build", ["Input", "Models", "View", "Run", "Cluster"]),
        ("import coco", ["Input", "Models", "View", "Run", "Cluster"]),
        ("retarget", ["View", "Models", "Regions", "Run", "Cluster"]),
        ("filter", ["Input", "Run", "Cluster"]),
        ("merge", ["View", "Models", "Run", "Cluster"]),
        ("train", ["Data", "Model", "Training", "Cluster"]),
    ],
)
def test_help_groups_the_options(name: str, panels: list[str]) -> None:
    """Thirty options in one box are read by nobody."""
    shown = CliRunner().invoke(app, [*name.split(), "--help"], prog_name="pad", env={"COLUMNS": "120"}).output
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    loose = {parameter.name for parameter in command(name).params if parameter.param_type_name == "option"}
    loose -= {parameter.name for parameter in command(name).params if getattr(parameter, "rich_help_panel", None)}
    assert loose <= {"as_json"}


def test_an_option_stands_in_the_same_panel_in_all_commands() -> None:
    """Who has learned one command finds things in the next."""
    panels: dict[str, set[str]] = {}
    for name in ("build", "import coco", "retarget", "filter", "merge"):
        for parameter in command(name).params:
            if parameter.param_type_name == "option":
                panels.setdefault(parameter.opts[0], set()).add(parameter.rich_help_panel)
    assert not {option: where for option, where in panels.items() if len(where) > 1}


def leaves(found: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield name
    for child in getattr(found, "commands", {}).values():
        yield from leaves(child, (*name, child.name))


def test_help_imports_nothing_heavy() -> None:
    """Seconds of imports for a page of text."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pad_pipeline.workflows.cli import app\n"
        "heavy = {'torch', 'transformers', 'ray', 'numpy', 'pyarrow', 'PIL'}\n"
        f"for words in {list(leaves(typer.main.get_command(app)))!r}:\n"
        "    done = CliRunner().invoke(app, [*words, '--help'], prog_name='pad')\n"
        "    assert done.exit_code == 0, done.output\n"
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
