"""The command line: which commands there are, in the order of --help, and how the program ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
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
from pad_pipeline.workflows.commands.options import Commands
from pad_pipeline.workflows.commands.report import report
from pad_pipeline.workflows.commands.rewrite import filter_shards, merge, retarget
from pad_pipeline.workflows.commands.shards import stats, verify
from pad_pipeline.workflows.commands.show import show
from pad_pipeline.workflows.commands.train import chat, train

app = Commands(
    help="Build the Patch-Aligned Dataset of arXiv 2505.17316 from captioned images, and train a projector on it.",
    epilog="Start with: pad demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
import_app = Commands(help="Make shards from data that people have annotated already.", no_args_is_help=True)
app.add_typer(import_app, name="import")
miniature_app = Commands(
    help="The drawn world and its five small models: draw scenes, score the models against exact truth.",
    no_args_is_help=True,
)
app.add_typer(miniature_app, name="miniature")
evaluate_app = Commands(help="Ask a trained model, and score what it says.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
export_app = Commands(help="Write shards in the formats that other tools open.", no_args_is_help=True)
app.add_typer(export_app, name="export")
models_app = Commands(
    help="The models of a build: where their files come from, whether they are here, whether they are right.",
    no_args_is_help=True,
)
app.add_typer(models_app, name="models")
for command in (build, train, analyze, experiment, chat, verify, stats, report, show, retarget):
    app.command(cls=Command)(command)
app.command("filter", cls=Command)(filter_shards)
app.command(cls=Command)(merge)
app.command(cls=Command)(demo)
app.command(cls=Command)(doctor)
import_app.command("coco", cls=Command)(import_coco)
evaluate_app.command("rec", cls=Command)(evaluate_rec)
evaluate_app.command("captions", cls=Command)(evaluate_captions)
evaluate_app.command("vqa", cls=Command)(evaluate_vqa)
evaluate_app.command("lmms", cls=Command)(evaluate_lmms)
export_app.command("coco", cls=Command)(export_coco)
export_app.command("fiftyone", cls=Command)(export_fiftyone)
export_app.command("parquet", cls=Command)(export_parquet)
export_app.command("hub", cls=Command)(export_hub)
models_app.command("list", cls=Command)(models_list)
models_app.command("fetch", cls=Command)(models_fetch)
models_app.command("check", cls=Command)(models_check)
miniature_app.command("draw", cls=Command)(miniature_draw)
miniature_app.command("evaluate", cls=Command)(miniature_evaluate)

# An unknown option, a value of the wrong type; typer's base class has no public name of its own.
UsageError: Any = typer.BadParameter.__bases__[0]


_asked: dict[str, bool] = {}
"""What the options before the command's name said."""


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings: results, and the error that ends it.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="What libraries have to say too, and where an error comes from.")
    ] = False,
) -> None:
    errors.quiet = quiet
    _asked["verbose"] = verbose
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
        return "Delete the --out folder, or name another one, to start anew."
    return "Run the same command again to continue."


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """SIGTERM, and the end of the terminal, end the program as Ctrl-C does: what is in hand is dropped, in good order.
    The signals that came."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
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
    """The entry point: a user's mistake is one line and exit code 2, never a traceback."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # NumPy's products here are small, and made in threads of ours: where the cores are not all free (a shared machine,
    # a container's quota), threads of its own wait for each other many times as long as they compute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _terminable() as received:
        code = _run_app(received)
    if code > 128 and threading.current_thread() is threading.main_thread() and threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that read from a network would be waited for
    sys.exit(code)


def _run_app(received: list[int]) -> int:
    try:
        code = app(prog_name="pad", standalone_mode=False) or 0
    except SystemExit:
        if not received:
            raise
        code = 128 + received[0]  # and not the exception's: Ray puts 1 there
    except UserError as error:
        if _asked.get("verbose"):
            traceback.print_exc()
        errors.quiet = False
        note(f"error: {error}", "red")
        return 2
    except UsageError as error:
        error.show()
        return 2
    except OSError as error:
        errors.quiet = False
        rule = error.strerror or " ".join(str(error).split())
        note(f"error: file = {error.filename}: {rule}; mend it and try again", "red")
        return 2
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
        with suppress(OSError):  # the terminal may be gone
            errors.print(f"Stopped. {_after_a_stop(sys.argv[1:3])}")
    return int(code)


if __name__ == "__main__":
    main()
