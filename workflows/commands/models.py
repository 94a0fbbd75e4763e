"""The commands of `pad models`, about the model files of a build."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Column

from pad_pipeline.console import Table, console, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import AsJson, escaped, print_json
from pad_pipeline.workflows.commands.options import option
from pad_pipeline.workflows.commands.reword import reword

ModelsArgument = Annotated[str, typer.Argument(help="`paper`, `plus`, `best`, `miniature`, or a models file (TOML).")]

PARITY = "Comparison with the authors' code"
"""Title of a box in which `--help` lists options."""
HERE = "on this machine"
_NAMED = "official files that a models file can name"


def models_list(models: ModelsArgument = "", as_json: AsJson = False) -> None:
    """List the files of the models: size, license, what pins them, whether they are gated, and their path here.

    Without MODELS, the files of all presets are listed, and the official files that a models file can name. A pin is
    the revision on the hub, the sha256, or both. A gated model is given only to those who accept its license.

    Example:

      pad models list plus
    """
    from pad_pipeline.workflows.models.catalog import OFFICIAL
    from pad_pipeline.workflows.models.files import files, listed
    from pad_pipeline.workflows.models.settings import PRESETS, load_models

    chosen = {name: listed(files(load_models(name))) for name in ([models] if models else [*PRESETS, "miniature"])}
    if as_json:
        official = {} if models else {"official": {name: file._asdict() for name, file in OFFICIAL.items()}}
        print_json({"models": {name: [file._asdict() for file in found] for name, found in chosen.items()}} | official)
        return
    for name, found in chosen.items():
        console.print(f"[bold]--models {escaped(name)}[/bold]")
        for file in found:
            gated = "" if file.gated is None else "gated" if file.gated else "not gated"
            facts = [_size(file.megabytes), file.pinned, file.license or "license: see its page", gated]
            facts += [f"[green]{HERE}[/green]" if file.path else f"[yellow]not {HERE}[/yellow]"]
            console.print(f"  [bold]{file.field}[/bold]", highlight=False)
            console.print(Padding(", ".join(filter(None, facts)), (0, 0, 0, 4)), highlight=False)
            console.print(f"    from {escaped(file.reference)}", highlight=False, soft_wrap=True, style="dim")
            if file.path:
                console.print(f"    at {escaped(str(file.path))}", highlight=False, soft_wrap=True, style="dim")
        if total := sum(file.megabytes or 0 for file in found):
            whole = sum(file.whole_megabytes or 0 for file in found)
            least = "at least " if None in [file.megabytes for file in found] else ""
            more = f"; {least}{_size(whole)} from a server that sends whole files only" if whole > total else ""
            console.print(f"  [bold]download[/bold] {least}{_size(total)}{more}", highlight=False)
    if not models:
        names = Table(Column("short name", no_wrap=True), "what", "size", "license", title=_NAMED)
        for name, official_file in OFFICIAL.items():
            names.add_row(name, official_file.what, _size(official_file.megabytes), official_file.license)
        console.print(names)


def _size(megabytes: int | None) -> str:
    return f"{megabytes / 1000:.2f} GB" if megabytes else ""


def models_fetch(context: typer.Context, models: ModelsArgument = "paper", as_json: AsJson = False) -> None:
    """Download, check and convert all files of the models, so that no build has to wait for them.

    Example:

      pad models fetch plus
    """
    from pad_pipeline.labels import LabelEmbedder
    from pad_pipeline.workflows.models.settings import load_models

    chosen = load_models(models)
    found = chosen.fingerprints() | LabelEmbedder(chosen.llm).fingerprints()
    if as_json:
        print_json({"sha256": found})
        return
    for name, digest in sorted(found.items()):
        say(f"{name:18} sha256 {digest}")
    models_check(context, models)


def models_check(
    context: typer.Context,
    models: ModelsArgument = "paper",
    parity: Annotated[
        bool,
        option(
            PARITY, "Run the examples of the models' authors too, and compare their numbers with pad's.", "--parity"
        ),
    ] = False,
    image: Annotated[
        Path | None, option(PARITY, "Image for the comparison.", show_default="a drawn scene", metavar="FILE")
    ] = None,
    upstream_python: Annotated[
        list[str] | None,
        option(
            PARITY,
            "Python that has the packages of the authors; SECTION=PYTHON for the tagger, detector or segmenter alone.",
            metavar="[SECTION=]PYTHON",
            show_default="pad's own",
        ),
    ] = None,
    upstream_weights: Annotated[
        list[str] | None,
        option(
            PARITY,
            "Weights for the authors' code, if they are in another file than pad's: their own file of a model of which "
            "pad reads the copy on the hub.",
            metavar="SECTION=PATH",
            show_default="the file that pad reads",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read all files of the models as a build does, and check hashes, tensors, tag list and tokenizer.

    Nothing is fetched. The exit code is 1 if a file is missing or wrong.

    With --parity, pad and the code of the models' authors compute on one image, on the CPU in float32, and a table
    shows the largest difference of each kind of numbers. The last lines are for an issue. The exit code is 0 only if
    all models were compared and are equal within the tolerances, 1 if one differs or a file is wrong, and 3 if nothing
    differs, but a model could not be compared; its line says why, and which command helps.

    Examples:

      pad models check my-models.toml

      pad models check paper --parity --upstream-python tagger=ram-env/bin/python --image demo1.jpg
    """
    from pad_pipeline.workflows.commands.parity import check_parity
    from pad_pipeline.workflows.models.files import check
    from pad_pipeline.workflows.models.parity.given import parse_given, without_gpu
    from pad_pipeline.workflows.models.settings import load_models

    for name, value in {
        "image": image,
        "upstream_python": upstream_python,
        "upstream_weights": upstream_weights,
    }.items():
        if value and not parity:
            raise UserError(name, value, "it goes with `parity`", "add `parity`, or leave it out")
    chosen, given = load_models(models), parse_given(upstream_python or [], upstream_weights or [])
    with without_gpu() if parity else nullcontext():
        found = []
        for name, what, error in check(chosen):
            found.append({"model": name, "found": what, "wrong": error and reword(str(error), context)})
            text = (
                f"[red]wrong[/red]: {escaped(str(found[-1]['wrong']))}"
                if error
                else f"[green]right[/green]: {escaped(what)}"
            )
            if not as_json:
                console.print(f"{name:10} {text}", highlight=False, soft_wrap=True)
        compared, code = check_parity(context, chosen, image, given, as_json) if parity else ({}, 0)
    if as_json:
        print_json({"files": found, "parity": compared} if parity else found)
    if any(one["wrong"] for one in found):
        code = 1
    if code:
        raise typer.Exit(code)
