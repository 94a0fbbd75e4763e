"""The commands of `pad models`, about the model files of a build."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from pad_pipeline.console import console, say
from pad_pipeline.workflows.commands.common import AsJson, escaped, print_json
from pad_pipeline.workflows.commands.reword import reword

ModelsArgument = Annotated[str, typer.Argument(help="`paper`, `plus`, `best`, `miniature`, or a TOML file.")]

_NAMED = "official files that a TOML file can name"


def models_list(models: ModelsArgument = "", as_json: AsJson = False) -> None:
    """List the files of the models: size, license, what pins them, whether they are gated, and their path here.

    Without MODELS, the files of all presets are listed, and the official files that a TOML file can name. A pin is the
    revision on the hub, the sha256, or both. A gated model is given only to those who accept its license.

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
            place = f"[green]here[/green]: {escaped(str(file.path))}" if file.path else "[yellow]not here[/yellow]"
            facts = f"{_size(file.megabytes):8} {file.pinned:41} {file.license or 'license: see its page':26}"
            gated = "" if file.gated is None else "gated" if file.gated else "open"
            console.print(f"  {file.field:18} {facts} {gated:5} {place}", highlight=False, soft_wrap=True)
            console.print(f"  {'':18} from {escaped(file.reference)}", highlight=False, soft_wrap=True, style="dim")
        if total := sum(file.megabytes or 0 for file in found):
            whole = sum(file.whole_megabytes or 0 for file in found)
            more = f"; {_size(whole)} from a server that sends whole files only" if whole > total else ""
            least = "at least " if None in [file.megabytes for file in found] else ""
            console.print(f"  {'in all':18} {least}{_size(total)}{more}", highlight=False, soft_wrap=True)
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
    models_check(context, models, False)


def models_check(context: typer.Context, models: ModelsArgument = "paper", as_json: AsJson = False) -> None:
    """Read all files of the models as a build does, and check hashes, tensors, tag list and tokenizer.

    Nothing is fetched. The exit code is 1 if a file is missing or wrong.

    Example:

      pad models check my-models.toml
    """
    from pad_pipeline.workflows.models.files import check
    from pad_pipeline.workflows.models.settings import load_models

    wrong = 0
    said = ((name, what, error and reword(str(error), context)) for name, what, error in check(load_models(models)))
    if as_json:
        found = list(said)
        print_json([dict(zip(("model", "found", "wrong"), entry, strict=True)) for entry in found])
        raise typer.Exit(1 if any(error for _, _, error in found) else 0)
    for name, what, error in said:
        wrong += error is not None
        text = f"[red]wrong[/red]: {escaped(error)}" if error else f"[green]right[/green]: {escaped(what)}"
        console.print(f"{name:10} {text}", highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)
