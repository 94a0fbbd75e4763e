"""The program `pad`: its commands, in the order of --help, and its exit codes."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from typer.core import TyperGroup

from pad_pipeline import __version__
from pad_pipeline.console import errors, note
from pad_pipeline.errors import UserError
from pad_pipeline.retries import REMEDY, StoreError
from pad_pipeline.workflows.commands.analyze import analyze, experiment
from pad_pipeline.workflows.commands.build import build
from pad_pipeline.workflows.commands.corrections import import_label_studio
from pad_pipeline.workflows.commands.doctor import doctor
from pad_pipeline.workflows.commands.duplicates import duplicates
from pad_pipeline.workflows.commands.evaluate import evaluate_captions, evaluate_lmms, evaluate_rec, evaluate_vqa
from pad_pipeline.workflows.commands.evaluate_labels import evaluate_labels
from pad_pipeline.workflows.commands.export import (
    export_coco,
    export_cvat,
    export_fiftyone,
    export_hub,
    export_label_studio,
    export_parquet,
)
from pad_pipeline.workflows.commands.imports import (
    import_coco,
    import_cvat,
    import_fivl,
    import_labelme,
    import_openimages,
    import_voc,
    import_yolo,
)
from pad_pipeline.workflows.commands.miniature import demo, miniature_draw, miniature_evaluate
from pad_pipeline.workflows.commands.models import models_check, models_fetch, models_list
from pad_pipeline.workflows.commands.narrow_help import NarrowHelp
from pad_pipeline.workflows.commands.options import expand_groups
from pad_pipeline.workflows.commands.report import report
from pad_pipeline.workflows.commands.reword import Command, UsageError
from pad_pipeline.workflows.commands.rewrite import apply_filter, merge, retarget
from pad_pipeline.workflows.commands.shards import stats, verify
from pad_pipeline.workflows.commands.show import show
from pad_pipeline.workflows.commands.train import chat, train


class Group(NarrowHelp, TyperGroup):
    """A group of commands, also the one of all commands."""


app = typer.Typer(
    cls=Group,
    help="Build the Patch-Aligned Dataset of arXiv 2505.17316 from captioned images, and train a projector on it.",
    epilog="Start with: pad demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


COMMANDS: list[Callable[..., None]] = [
    build, train, analyze, experiment, chat, verify, stats, duplicates, report, show, retarget, apply_filter,
    merge, demo, doctor,
]  # fmt: skip
"""The commands without a group. For their names see `_name_of`."""
GROUPS: dict[str, tuple[str, list[Callable[..., None]]]] = {
    "import": (
        "Make shards from images that people have annotated.",
        [
            import_coco,
            import_yolo,
            import_voc,
            import_label_studio,
            import_cvat,
            import_labelme,
            import_openimages,
            import_fivl,
        ],
    ),
    "miniature": ("Draw scenes, and measure pad's small models on them.", [miniature_draw, miniature_evaluate]),
    "evaluate": (
        "Score the labels of a run, or a trained model's answers to questions.",
        [evaluate_labels, evaluate_rec, evaluate_captions, evaluate_vqa, evaluate_lmms],
    ),
    "export": (
        "Write shards in formats that other tools open.",
        [export_coco, export_fiftyone, export_label_studio, export_cvat, export_parquet, export_hub],
    ),
    "models": ("List, fetch and check the model files of a build.", [models_list, models_fetch, models_check]),
}
"""Name of a group of commands -> its help and its commands."""


def _name_of(command: Callable[..., None]) -> str:
    """Return the name of a command: that of its function without its first word, if it has several."""
    return (command.__name__.partition("_")[2] or command.__name__).replace("_", "-")


def _add(to: typer.Typer, commands: list[Callable[..., None]]) -> None:
    for command in commands:
        text = _flowing(command.__doc__ or "")
        to.command(_name_of(command), cls=Command, help=text)(expand_groups(command))


def _flowing(text: str) -> str:
    """Join the lines of each paragraph, which a terminal breaks by its own width. Examples keep their lines."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if re.search("^ ", part, re.MULTILINE) else " ".join(part.split()) for part in parts)


_add(app, COMMANDS)
for name, (text, commands) in GROUPS.items():
    group = typer.Typer(cls=Group, help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    _add(group, commands)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results, and the error that ends the command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the messages of libraries too, and an error's traceback.")
    ] = False,
) -> None:
    errors.quiet = quiet
    if verbose:
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if version:
        typer.echo(f"pad {__version__}")
        raise typer.Exit


def _after_a_stop(command: list[str]) -> str:
    if command[:1] == ["train"]:
        return "Run the same command again to go on from the last checkpoint."
    if command[:1] == ["demo"] or command == ["miniature", "evaluate"]:
        return "Delete the --out folder, or name another one, to start again."
    return "What is finished is kept: run the same command again to continue."


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Make SIGTERM and SIGHUP (the terminal closes) end the program as Ctrl-C does. Yield the received signals."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    # `nohup` ignores SIGHUP, and so does the program then.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the program. A user's mistake prints one line, not a traceback, and gives exit code 2."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # NumPy gets one thread, because pad multiplies small matrices in several threads of its own. If other programs use
    # the cores, or a container has few of them, more threads of NumPy would mostly wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _terminable() as received:
        code = _run_app(received)
    if code > 128 and threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a normal exit would wait for threads that are reading from a network
    sys.exit(code)


def _run_app(received: list[int]) -> int:
    try:
        code = app(prog_name="pad", standalone_mode=False) or 0
    except SystemExit:
        if not received:
            raise
        code = 128 + received[0]  # the exception may hold another code: Ray sets it to 1
    except UserError as error:
        errors.quiet = False
        note(f"error: {error}", "red")
        return error.code
    except UsageError as error:
        error.show()
        return 2
    except OSError as error:
        errors.quiet = False
        rule = error.strerror or " ".join(str(error).split())
        remedy = REMEDY if isinstance(error, StoreError) else "correct it and try again"
        note(f"error: file = {error.filename}: {rule}; {remedy}", "red")
        return 2
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
        with suppress(OSError):  # the terminal may be closed
            errors.print(f"Stopped. {_after_a_stop(sys.argv[1:3])}")
    return int(code)


if __name__ == "__main__":
    main()
