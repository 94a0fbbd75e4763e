"""The commands of `pad models`, about the model files of a build."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from pad_pipeline.console import console, say
from pad_pipeline.workflows.commands.common import AsJson, escaped, print_json
from pad_pipeline.workflows.commands.reword import reword

ModelsArgument = Annotated[str, typer.Argument(help="`paper`, `plus`, `best`, `miniature`, or a TOML file.")]


def models_list(models: ModelsArgument = "", as_json: AsJson = False) -> None:
    """List the files of the models: size, pinned sha256, and path on this machine.

    Without MODELS, the files of `paper`, `plus` and `miniature` are listed.

    Example:

      pad models list plus
    """
    from pad_pipeline.workflows.models.catalog import MEGABYTES, OFFICIAL
    from pad_pipeline.workflows.models.files import files
    from pad_pipeline.workflows.models.settings import PRESETS, load_models

    chosen = [models] if models else [*PRESETS, "miniature"]
    if as_json:
        found: dict[str, Any] = {
            name: [
                file._asdict() | {"megabytes": MEGABYTES.get(file.reference), "path": file.path}
                for file in files(load_models(name))
            ]
            for name in chosen
        }
        official = {} if models else {"official": {name: file._asdict() for name, file in OFFICIAL.items()}}
        print_json({"models": found} | official)
        return
    for name in chosen:
        console.print(f"[bold]--models {escaped(name)}[/bold]")
        for part in files(load_models(name)):
            megabytes = MEGABYTES.get(part.reference)
            size = f"{megabytes / 1000:.2f} GB" if megabytes else ""
            pinned = f"sha256 {part.sha256[:12]}..." if part.sha256 else "any sha256"
            place = f"[green]here[/green]: {escaped(str(part.path))}" if part.path else "[yellow]not here[/yellow]"
            console.print(f"  {part.field:18} {size:8} {pinned:22} {place}", highlight=False, soft_wrap=True)
            console.print(f"  {'':18} from {escaped(part.reference)}", highlight=False, soft_wrap=True, style="dim")
    if not models:
        names = Table("short name", "what", "size", title="official files that a TOML file can name")
        for name, file in OFFICIAL.items():
            names.add_row(name, file.what, f"{file.megabytes / 1000:.2f} GB" if file.megabytes else "")
        console.print(names)


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
