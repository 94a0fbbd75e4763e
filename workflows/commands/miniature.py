"""`pad demo` and `pad miniature`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pad_pipeline.console import console, errors, say, track
from pad_pipeline.workflows.commands.common import AsJson, EngineOption, counted, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    scenes: Annotated[int, typer.Option(help="How many scenes to draw.", min=2)] = 200,
    steps: Annotated[int, typer.Option(help="Of each of the two trainings.", min=1)] = 100,
    engine: EngineOption = "ray",
    as_json: AsJson = False,
) -> None:
    """See it work, without network: annotate drawn scenes, score them, train a projector with and without patch loss.

    Example:

      pad demo --out demo-out/
    """
    from pad_pipeline.workflows.miniature.demo import run_demo

    found = run_demo(out, scenes, steps, engine, errors if as_json else console)
    if as_json:
        print_json(found)


def miniature_draw(
    count: Annotated[int, typer.Option(help="How many scenes.", min=1, max=100_000)],
    out: Annotated[Path, typer.Option(help="Folder: new, empty, or drawn scenes to draw over.")],
    seed: Annotated[int, typer.Option(help="Of the world: each has its own scenes.", min=0, max=999_999)] = 0,
) -> None:
    """Draw scenes: images, LLaVA JSON for both stages, exact masks as COCO JSON, referring expressions.

    Example:

      pad miniature draw --count 100 --out world/
    """
    from pad_pipeline.miniature.files import write_world

    world = write_world(out, count, seed, track(range(count), "drawing", count))
    say(f"{counted(count, 'scene')} in {out}: {', '.join(path.name for path in world)}")


def miniature_train(
    model: Annotated[
        Literal["tagger", "detector", "segmenter", "clip", "llm", "all"],
        typer.Argument(help="Which; the detector needs a trained tagger."),
    ],
    out: Annotated[Path, typer.Option(help="Folder: models/ will be the miniature, training/ its unfinished state.")],
    seed: Annotated[int, typer.Option(help="Of weights and scenes.", min=0, max=999_999)] = 0,
    steps: Annotated[int, typer.Option(help="Instead of the model's own budget, to try things.", min=0)] = 0,
) -> None:
    """Train the small models anew: under 4 hours for all on two CPU cores, less on a GPU.

    Run the same command again to continue. To use the result: --models OUT/models/models.toml

    Example:

      pad miniature train all --out my-miniature/
    """
    # Before NumPy is loaded: its threads would wait in loops for cores that the training needs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from pad_pipeline.workflows.miniature.members import train_miniature

    console.print(str(train_miniature(model, out, seed, steps)), soft_wrap=True)


def miniature_evaluate(
    out: Annotated[Path, typer.Option(help="New folder for scenes, shards, projectors and evaluation.json.")],
    scenes: Annotated[int, typer.Option(help="Scenes to annotate and score.", min=2, max=100_000)] = 500,
    seeds: Annotated[int, typer.Option(help="Pairs of projectors, with and without patch loss.", min=0)] = 3,
    steps: Annotated[int, typer.Option(help="Of each projector's training.", min=1)] = 100,
    models: Annotated[str, typer.Option(help="`miniature`, or the TOML of models for the same labels.")] = "miniature",
    vision: Annotated[str, typer.Option(help="The CLIP that goes with them: `miniature` or a folder.")] = "miniature",
    engine: EngineOption = "local",
    as_json: AsJson = False,
) -> None:
    """Score the miniature on scenes that it was never trained on, through `pad build` and `pad train`.

    Example:

      pad miniature evaluate --out evaluation/
    """
    from pad_pipeline.miniature.shipped import resolve
    from pad_pipeline.workflows.miniature import scoring as workflow
    from pad_pipeline.workflows.models.settings import load_models

    chosen, tower = load_models(models), resolve(vision, "clip")
    found = workflow.evaluate(out, chosen, tower, scenes, seeds, steps, engine, errors if as_json else console)
    print_json(workflow.as_dict(found)) if as_json else console.print(workflow.table(found))


def miniature_compare(
    out: Annotated[Path, typer.Option(help="Folder for scenes, shards, trainings and compare.json.")],
    scenes: Annotated[int, typer.Option(help="Scenes to annotate, for stage 1.", min=2, max=100_000)] = 384,
    dialogues: Annotated[int, typer.Option(help="Scenes that stage 2 talks of.", min=2, max=100_000)] = 2000,
    seeds: Annotated[int, typer.Option(help="Pairs of trainings, with and without patch loss.", min=1)] = 3,
    stage1_steps: Annotated[int, typer.Option(help="Of 16 captions each.", min=1)] = 150,
    stage2_steps: Annotated[int, typer.Option(help="Of 8 dialogues each.", min=1)] = 800,
    probes: Annotated[int, typer.Option(help="Scenes to score; none is trained on.", min=1)] = 100,
    models: Annotated[str, typer.Option(help="`miniature`, or the TOML of models for the same labels.")] = "miniature",
    vision: Annotated[str, typer.Option(help="The CLIP that goes with them: `miniature` or a folder.")] = "miniature",
    engine: EngineOption = "local",
    threads: Annotated[int, typer.Option(help="CPU threads of each model; 0 for all cores.", min=0, max=1024)] = 0,
    as_json: AsJson = False,
) -> None:
    """Train both stages with and without the patch loss, and compare: patches, captions, referring expressions.

    Run the same command again to continue.

    Example:

      pad miniature compare --out comparison/
    """
    from pad_pipeline.miniature.shipped import resolve
    from pad_pipeline.workflows.miniature import compare as workflow
    from pad_pipeline.workflows.models.settings import load_models

    chosen, tower = load_models(models), resolve(vision, "clip")
    budget = workflow.Budget(scenes, dialogues, seeds, stage1_steps, stage2_steps, probes)
    comparison = workflow.Comparison(out, chosen, tower, budget, errors if as_json else console)
    comparison.prepare(engine, threads)
    outcomes = comparison.run()
    print_json(workflow.summary(outcomes)) if as_json else console.print(workflow.table(outcomes))
