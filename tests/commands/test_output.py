"""What commands print: help with examples, JSON for scripts, only errors when quiet, odd text as it is."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from rich.console import Console
from rich.text import Text
from typer import rich_utils
from typer.testing import CliRunner

from pad_pipeline.console import Table
from pad_pipeline.errors import printable
from pad_pipeline.workflows.cli import app
from tests.commands.conftest import Pad


def every_command(command: Any = None, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The names of all commands, and of the groups they are in."""
    command = command or typer.main.get_command(app)
    found = [name]
    for child in getattr(command, "commands", {}).values():
        found += every_command(child, (*name, child.name))
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_has_an_example_for_each_command(command: tuple[str, ...]) -> None:
    """Whoever asks for help gets a line to start from."""
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="pad")
    assert result.exit_code == 0
    assert " ".join(("pad", *command)) in result.output
    if "COMMAND" not in result.output:
        assert "Example" in result.output


@pytest.mark.parametrize("columns", [40, 80])
def test_help_is_whole_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 80 columns rich's boxes cut options, so a list without boxes takes their place; from 80 on nothing is cut.
    Catches an option with a name or a range that is too long for its box, and an example that cannot be copied."""
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", columns)
    for name in every_command():
        command = typer.main.get_command(app)
        for part in name:
            command = command.commands[part]  # type: ignore[attr-defined]
        shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": str(columns)}, prog_name="pad").output
        assert "…" not in shown and not re.search(r"\w\.\.\.(?! +<)", shown), name
        for parameter in command.params:
            longest = max(parameter.opts, key=len)
            assert longest in shown, (name, longest)
        for line in (command.help or "").split("\n"):
            words = re.findall(r"--[a-z-]+", line) if line.startswith("  pad ") else []
            assert all(word in shown for word in words), (name, line)


def test_a_table_is_whole_at_any_width() -> None:
    """Where a table does not fit, each row is a paragraph. Catches numbers that are cut, which nobody notices."""
    table = Table("stage", "images", "images/s", title="what is done")
    table.add_row("[bold]segmentation[/bold]", "123456789", Text("1234567.8"))
    table.add_row("decoding", "987654321", "")
    for width, lines in ((60, 7), (43, 5), (24, 5)):
        console = Console(width=width, file=io.StringIO())
        console.print(table)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in shown and "[bold]" not in shown
        for text in ("what is done", "segmentation", "123456789", "1234567.8", "decoding", "987654321"):
            assert text in shown, (width, text)
        assert all(len(line) <= width for line in shown.splitlines()) and len(shown.splitlines()) >= lines


def test_tables_come_as_json_too(pad: Pad, shards: Path, tmp_path: Path) -> None:
    """For scripts: what is printed with --json is JSON and nothing else, whatever is said besides."""
    for words in (
        ["verify", shards, "--json"],
        ["stats", shards, "--json"],
        ["models", "list", "miniature", "--json"],
        ["models", "check", "miniature", "--json"],
        ["models", "fetch", "miniature", "--json"],
        ["doctor", "--models", "miniature", "--out", tmp_path, "--json"],
        ["filter", shards, "--min-regions", 1, "--out", tmp_path / "filtered", "--json"],
        ["miniature", "evaluate", "--scenes", 2, "--seeds", 1, "--steps", 1, "--out", tmp_path / "eval", "--json"],
    ):
        done = pad(*words)
        assert done.code in (0, 1 if words[0] == "doctor" else 0), done.err
        assert json.loads(done.out), words
    listed = json.loads(pad("models", "list", "--json").out)
    assert {"megabytes", "path", "sha256"} <= set(listed["models"]["paper"][0]) and listed["official"]


def test_quiet_prints_errors_alone_and_verbose_where_they_come_from(pad: Pad, shards: Path, tmp_path: Path) -> None:
    """--quiet keeps the error that ends a command, and no more; --verbose adds where it comes from; neither stays for
    the next command of the process."""
    quiet = pad("--quiet", "filter", shards, "--min-regions", 1, "--out", tmp_path / "out")
    assert quiet.code == 0 and quiet.err == ""
    refused = pad("--quiet", "verify", tmp_path / "nothing")
    assert refused.code == 2 and refused.err.startswith("error: ")
    refused = pad("--verbose", "verify", tmp_path / "nothing")
    assert "Traceback" in refused.err and "run.json" in refused.err
    assert "Traceback" not in pad("verify", tmp_path / "nothing").err


def test_odd_text_is_shown_as_it_is(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Labels and reasons come from outside: no markup, no escape sequences on the user's terminal."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "\x1b[31m[bold]/../x.png"}],
        "categories": [{"id": 1, "name": "[red]\x1b[2Jlabel[/red]"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common]
    assert pad(*command, "--out", tmp_path / "out").code == 0
    shown = pad("stats", tmp_path / "out").out
    assert "[red]" in shown
    assert "\x1b" not in shown


def test_progress_is_a_line_now_and_then_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an analysis or an export of hours whose log stays empty."""
    from pad_pipeline import console

    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    with console.progress("export", 3, "shards") as update:
        update(completed=1)
        update(completed=2)
    assert [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "export: 1 of 3 shards", "export: 2 of 3 shards",
    ]  # fmt: skip


def test_a_name_with_control_characters_changes_no_terminal(pad: Pad, tmp_path: Path) -> None:
    """Catches a data set whose file names clear the screen, or color a line as an error or as a success."""
    bad = tmp_path / "\x1b[2J\x1b[31mred"
    bad.mkdir()
    (bad / "\x1b[32mnotes.txt").write_text("x")
    for images in (bad / "gone", bad):
        done = pad("build", "--images", images, "--models", "miniature", "--out", tmp_path / "out")
        assert done.code == 2 and "\x1b" not in done.out + done.err and "\\x1b[31mred" in done.err
    assert printable("👩\u200d👧 می\u200cخواهم\n\t") == "👩\u200d👧 می\u200cخواهم\n\t"  # joiners belong to the text
    assert printable("\u202egnp.exe\r") == "\\u202egnp.exe\\r"
