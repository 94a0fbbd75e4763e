"""The commands `pad demo`, `pad miniature draw` and `pad miniature evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import console, errors, say, track
from pad_pipeline.workflows.commands.common import AsJson, EngineOption, counted, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo-out"),
    scenes: Annotated[int, typer.Option(help="Number of scenes to draw.", min=2)] = 200,
    steps: Annotated[int, typer.Option(help="Steps of each of the two trainings.", min=1)] = 100,
    engine: EngineOption = "ray",
    as_json: AsJson = False,
) -> None:
    """Try pad without a network: annotate drawn scenes, and train a projector with and without patch loss.

    Example:

      pad demo --out demo-out/
    """
    from pad_pipeline.workflows.miniature.demo import run_demo

    found = run_demo(out, scenes, steps, engine, errors if as_json else console)
    if as_json:
        print_json(found)


def miniature_draw(
    count: Annotated[int, typer.Option(help="Number of scenes to draw.", min=1, max=100_000)],
    out: Annotated[Path, typer.Option(help="Folder to write into: new, empty, or with drawn scenes to overwrite.")],
    seed: Annotated[
        int, typer.Option(help="Seed of the drawing; each seed gives other scenes.", min=0, max=999_999)
    ] = 0,
) -> None:
    """Draw scenes: images, LLaVA JSON for both stages, exact masks as COCO JSON, and referring expressions.

    Example:

      pad miniature draw --count 100 --out world/
    """
    from pad_pipeline.miniature.files import write_world

    world = write_world(out, count, seed, track(range(count), "drawing", count))
    say(f"{counted(count, 'scene')} in {out}: {', '.join(path.name for path in world)}")


def miniature_evaluate(
    out: Annotated[Path, typer.Option(help="New folder for scenes, shards, projectors and evaluation.json.")],
    scenes: Annotated[int, typer.Option(help="Number of scenes to annotate and score.", min=2, max=100_000)] = 500,
    seeds: Annotated[int, typer.Option(help="Pairs of projectors to train: with and without patch loss.", min=0)] = 3,
    steps: Annotated[int, typer.Option(help="Steps of each projector's training.", min=1)] = 100,
    models: Annotated[str, typer.Option(help="`miniature`, or a TOML file with models for its labels.")] = "miniature",
    vision: Annotated[
        str, typer.Option(help="Vision tower for the projectors: `miniature`, or a folder.")
    ] = "miniature",
    engine: EngineOption = "local",
    as_json: AsJson = False,
) -> None:
    """Measure pad's small models on scenes that they were not trained on, with `pad build` and `pad train`.

    Example:

      pad miniature evaluate --out evaluation/
    """
    from pad_pipeline.miniature.shipped import member_reference
    from pad_pipeline.workflows.miniature import scoring as workflow
    from pad_pipeline.workflows.models.settings import load_models

    chosen, tower = load_models(models), member_reference(vision, "clip")
    found = workflow.evaluate(out, chosen, tower, scenes, seeds, steps, engine, errors if as_json else console)
    print_json(workflow.as_dict(found)) if as_json else console.print(workflow.table(found))
