"""The command line: which commands there are, in the order of --help, and how the program ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from pad_pipeline import __version__
from pad_pipeline.console import errors, note
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.analyze import analyze, experiment
from pad_pipeline.workflows.commands.build import build, import_coco
from pad_pipeline.workflows.commands.doctor import doctor
from pad_pipeline.workflows.commands.evaluate import evaluate_captions, evaluate_lmms, evaluate_rec, evaluate_vqa
from pad_pipeline.workflows.commands.export import export_coco, export_fiftyone, export_hub, export_parquet
from pad_pipeline.workflows.commands.miniature import demo, miniature_draw, miniature_evaluate
from pad_pipeline.workflows.commands.models import models_check, models_fetch, models_list
from pad_pipeline.workflows.commands.named import Command
from pad_pipeline.workflows.commands.options import expanded
from pad_pipeline.workflows.commands.report import report
from pad_pipeline.workflows.commands.rewrite import apply_filter, merge, retarget
from pad_pipeline.workflows.commands.shards import stats, verify
from pad_pipeline.workflows.commands.show import show
from pad_pipeline.workflows.commands.train import chat, train

app = typer.Typer(
    help="Build the Patch-Aligned Dataset of arXiv 2505.17316 from captioned images, and train a projector on it.",
    epilog="Start with: pad demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _add(to: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands. The last word of a function's name is the name of its command."""
    for command in commands:
        to.command(command.__name__.rpartition("_")[2], cls=Command)(expanded(command))


def _group(name: str, text: str, *commands: Callable[..., None]) -> None:
    group = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    _add(group, *commands)


_add(
    app,
    build,
    train,
    analyze,
    experiment,
    chat,
    verify,
    stats,
    report,
    show,
    retarget,
    apply_filter,
    merge,
    demo,
    doctor,
)
_group("import", "Make shards from data that people have annotated already.", import_coco)
text = "Draw scenes, and score the five small models of the drawn world against exact truth."
_group("miniature", text, miniature_draw, miniature_evaluate)
text = "Ask a trained model, and score its answers."
_group("evaluate", text, evaluate_rec, evaluate_captions, evaluate_vqa, evaluate_lmms)
text = "Write shards in the formats that other tools open."
_group("export", text, export_coco, export_fiftyone, export_parquet, export_hub)
text = "List the models of a build, fetch their files, and check the files."
_group("models", text, models_list, models_fetch, models_check)

# An unknown option, a value of the wrong type; typer's base class has no public name of its own.
UsageError: Any = typer.BadParameter.__bases__[0]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print results, and the error that ends the command, and nothing else."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print messages of libraries too, and the traceback of an error.")
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
    return "Run the same command again to continue."


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Let SIGTERM and the end of the terminal end the program as Ctrl-C does; yield the signals that came."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the program: a user's mistake is one line and exit code 2, never a traceback."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # NumPy's products here are small, and made in threads of ours: if the cores are not all free (a shared machine,
    # a container's quota), threads of its own wait for each other many times as long as they compute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _terminable() as received:
        code = _run_app(received)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if code > 128 and in_main_thread and threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a normal exit would wait for threads that read from a network
    sys.exit(code)


def _run_app(received: list[int]) -> int:
    try:
        code = app(prog_name="pad", standalone_mode=False) or 0
    except SystemExit:
        if not received:
            raise
        code = 128 + received[0]  # and not the exception's: Ray puts 1 there
    except UserError as error:
        errors.quiet = False
        note(f"error: {error}", "red")
        return 2
    except UsageError as error:
        error.show()
        return 2
    except OSError as error:
        errors.quiet = False
        rule = error.strerror or " ".join(str(error).split())
        note(f"error: file = {error.filename}: {rule}; correct it and try again", "red")
        return 2
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
        with suppress(OSError):  # the terminal may be gone
            errors.print(f"Stopped. {_after_a_stop(sys.argv[1:3])}")
    return int(code)


if __name__ == "__main__":
    main()
