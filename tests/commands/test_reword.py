"""The library's errors name Python's parameters; a command shows its options in their place, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.main import get_command

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.workflows.cli import app
from pad_pipeline.workflows.commands.reword import reword, reword_error
from tests.commands.conftest import Pad


def running(*names: str) -> typer.Context:
    """The context of a command of pad, as it is while the command runs."""
    command = get_command(app)
    context = typer.Context(command, info_name="pad")
    for name in names:
        command = command.commands[name]
        context = typer.Context(command, context, info_name=name)
    return context


@pytest.mark.parametrize(
    ("command", "field", "shown"),
    [
        (("build",), "images", "--images"),
        (("build",), "image_root", "--image-root"),
        (("build",), "depth", "--fingerprint"),  # the option has another name than its parameter
        (("build",), "accept_changed_code", "--accept-changed-code"),
        (("merge",), "shards", "SHARDS"),
        (("train",), "shards", "--shards"),  # an argument of others
        (("export", "hub"), "repository", "--push"),
        (("chat",), "question", "QUESTION"),
        (("build",), "tagger.weights", "tagger.weights"),
        (("train",), "settings.llm", "settings.llm"),
        (("verify",), "steps", "steps"),  # an option of other commands only
        (("import", "coco"), "image_root", "image_root"),
    ],
)
def test_a_field_is_shown_as_the_option_of_its_command(command: tuple[str, ...], field: str, shown: str) -> None:
    error = UserError(field, "x", "it is wrong", "mend it")
    reword_error(error, running(*command))
    assert str(error) == f"{shown} = x: it is wrong; mend it"


@pytest.mark.parametrize(
    ("command", "text", "shown"),
    [
        ("build", "name another `out`", "name another --out"),
        ("build", "with `fork` NEWOUT or `retry_failed`", "with --fork NEWOUT or --retry-failed"),
        ("stats", "name other `shards`", "name other SHARDS"),
        ("train", "build with `size` 112", "build with --view-size 112"),  # an option of `pad build`
        ("train", "run `pad build`, see `run.json` and `nothing_known`", None),
        ("train", "name another out, or images", None),  # words, and no parameters
        ("train", "`LLaVA folder` or ``", None),
    ],
)
def test_parameters_in_backticks_become_options(command: str, text: str, shown: str | None) -> None:
    """What is no parameter stays as it stands: commands, files, unknown names, words without backticks."""
    assert reword(text, running(command)) == (shown or text)


def test_every_command_shows_each_of_its_parameters() -> None:
    """Whatever a command's own parameter is called, an error of it names what a user types."""
    seen = 0

    def look(command: object, context: typer.Context) -> None:
        nonlocal seen
        for name, inner in getattr(command, "commands", {}).items():
            look(inner, typer.Context(inner, context, info_name=name))
        if getattr(command, "commands", None):
            return
        for parameter in command.params:  # type: ignore[attr-defined]
            error = UserError(parameter.name, "", "", "")
            reword_error(error, context)
            assert error.field in parameter.opts if error.field.startswith("--") else error.field.isupper()
            seen += 1

    top = get_command(app)
    look(top, typer.Context(top, info_name="pad"))
    assert seen > 150


def test_a_field_is_renamed_where_the_caller_calls_it_otherwise() -> None:
    with pytest.raises(UserError) as caught, rename_field(shards="heldout"):
        raise UserError("shards", "a", "it is empty", "name others")
    assert str(caught.value) == "heldout = a: it is empty; name others"
    other = UserError("models", "a", "b", "c")
    with pytest.raises(UserError) as caught, rename_field(shards="heldout"):
        raise other
    assert caught.value is other


def test_commands_name_their_options(pad: Pad, tmp_path: Path, models_toml: Path, shards: Path) -> None:
    """What a user reads names what a user can type, whichever part of the library found it."""
    none, out = tmp_path / "none", ["--out", tmp_path / "out"]
    parts = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm"]
    projector = tmp_path / "mm_projector.bin"
    projector.write_bytes(b"nothing")
    for field, arguments in {
        "SHARDS": ["stats", none],
        "IMAGE": ["show", none, "--models", models_toml],
        "FILE": ["experiment", none, *out],
        "--shards": ["train", "--shards", none, *parts, *out],
        "--data": ["train", "--data", none, *parts, *out],
        "--image-root": ["train", "--data", models_toml, "--image-root", none, *parts, *out],
        "--init": ["train", "--shards", shards, "--init", projector, *parts, *out],
        "--model": ["analyze", "align", "--model", projector, "--shards", shards, *parts],
        "--heldout": ["experiment", "beta", "--shards", shards, "--heldout", none, *parts, *out],
        "--push": ["export", "hub", shards, "--push", "nobody", *out],
        "--fork": ["build", "--images", models_toml.parent, "--engine", "local", "--out", shards, "--fork", shards],
    }.items():
        done = pad(*arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith(f"error: {field} = "), done.err
