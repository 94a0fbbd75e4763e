"""The commands `pad analyze` and `pad experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pad_pipeline.console import console, note, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import FROM_FIRST, AsJson, EngineOption, print_json
from pad_pipeline.workflows.commands.options import OptionValues, options
from pad_pipeline.workflows.engine.ray_session import refuse_without_ray
from pad_pipeline.workflows.learning.choices import Analysis
from pad_pipeline.workflows.runs.options import RunOptions


def analyze(
    what: Annotated[Analysis, typer.Argument(help="The analysis to run.")],
    model: Annotated[
        Path, typer.Option(help="Folder that `pad train` wrote, a Hugging Face LLaVA folder, or mm_projector.bin.")
    ],
    shards: Annotated[
        str, typer.Option(help="Folder or URL of PAD shards, with images that the model was not trained on.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for analysis.json, charts and drawings; without it, nothing is written.")
    ] = None,
    vision: Annotated[str, typer.Option(help="For mm_projector.bin: its vision tower, or `miniature`.")] = "",
    llm: Annotated[str, typer.Option(help="For mm_projector.bin: its LLM, or `miniature`.")] = "",
    vision_layer: Annotated[int, typer.Option(help="For mm_projector.bin: the layer of its vision tower.")] = -2,
    settings: Annotated[Path | None, typer.Option(help="TOML file with settings of the analyses.")] = None,
    limit: Annotated[int | None, typer.Option(help=f"Number of images, {FROM_FIRST}.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Images in one batch; lower it if memory runs out.", min=1)] = 32,
    drawings: Annotated[int, typer.Option(help="Images to draw, each patch in the color of its label.", min=0)] = 4,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another model in the drawings, such as one without patch loss; repeatable."),
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="For health: scores.json of `pad evaluate captions`.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="For health: scores.json of training on captions only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a trained model aligns the patches of images with words.

    entropy: von Neumann entropy before and after the projector, and their difference dH. align: Align(V, W) and
    patch-level mIoU, compared with shuffled labels, shuffled patches and an untrained projector. pursuit: each vision
    token as a sum of words. lens: the nearest word of each vision token, and the LLM's logit lens. overlap: nearest
    neighbors that the projector keeps. place: how well a linear function reads where a token is and what it shows.
    words: the share of patches whose nearest label is one that they show; --out also gets a drawing for each of a few
    images, as all analyses with labels draw it: true labels beside those of this model and of --beside.
    sentences: the nearest words of captions by the LLM's hidden states. reliance: how much less likely a region's name
    in the caption is when the region is blanked.
    health: the paper's signs of failure (Align below 0.15, more than half of the patches without a readable word,
    captions worse than those of a model trained on captions only). With a sign of failure, the exit code is 1.

    Examples:

      pad analyze all --model two/ --shards heldout/ --out analysis/

      pad analyze align --model mm_projector.bin --vision openai/clip-vit-large-patch14-336
        --llm lmsys/vicuna-7b-v1.5 --shards heldout/ --limit 1000
    """
    from pad_pipeline.analysis.model import Subject
    from pad_pipeline.analysis.settings import AnalysisSettings
    from pad_pipeline.analysis.studies import STUDIES
    from pad_pipeline.miniature.shipped import member_reference
    from pad_pipeline.workflows.learning import analyze as workflow
    from pad_pipeline.workflows.toml import read_settings

    chosen = read_settings(AnalysisSettings, settings, {})
    healthy = what == "health"
    if (captions is None) != (baseline is None) or (captions and not healthy):
        rule = "it goes together with `baseline`, and with health only"
        raise UserError("captions", captions or "none", rule, "give both, or neither")
    names: list[str] = list(STUDIES) if what == "all" else ["align", "pursuit"] if healthy else [what]
    scores = workflow.caption_scores_below(captions, baseline) if captions and baseline else []
    subject = Subject(model, member_reference(vision, "clip"), member_reference(llm, "llm"), vision_layer)
    others = [Subject(path) for path in beside or []]
    found = workflow.analyze(names, subject, shards, chosen, out, limit, batch, drawings, others)
    signs = workflow.signs_of_failure(found, chosen) + scores if healthy else []
    if as_json:
        print_json(found | ({"signs_of_failure": signs} if healthy else {}))
        raise typer.Exit(1 if signs else 0)
    console.print(workflow.table(found))
    say("`pad analyze --help` says what each analysis measures; docs/howto/evaluating.md, what its numbers mean.")
    if healthy:
        for sign in signs:
            say(f"sign of failure: {sign}")
        if signs:
            raise typer.Exit(1)
        console.print("No sign of failure.")


def experiment(
    *,
    file: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or a recipe: beta, projector, coverage, loss, llms, miniature, miniature-beta, "
            "miniature-objective, miniature-steps, paper-at-size."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for experiment.json, with a folder for each training.")
    ] = None,
    shards: Annotated[str, typer.Option(help="PAD shards for the training of stage 1.")] = "",
    heldout: Annotated[str, typer.Option(help="PAD shards of other images, for the analyses.")] = "",
    vision: Annotated[str, typer.Option(help="Vision tower, or `miniature`.")] = "",
    llm: Annotated[str, typer.Option(help="LLM, or `miniature`.")] = "",
    data: Annotated[str, typer.Option(help="LLaVA JSON for stage 2; without it, only stage 1 is trained.")] = "",
    image_root: Annotated[str, typer.Option(help="Folder that image paths in the LLaVA JSON are relative to.")] = "",
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each cell, each with another seed; 3 by default.", min=1)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of stage 1, for cells that don't set them.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help=f"Number of images for the analyses, {FROM_FIRST}.", min=1)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the trainings and what they take; train none.")
    ] = False,
    card: Annotated[str, typer.Option(help="For the dry run: hours on these GPUs, such as h100 or 16xh100.")] = "",
    engine: EngineOption = "local",
    cluster: Annotated[OptionValues, options(RunOptions, None, "address gpus wait")],
    as_json: AsJson = False,
) -> None:
    """Train models with different settings on the same shards, and compare them in one table.

    A cell of the experiment is a choice of settings; it is trained once with each seed. With --engine ray the trainings
    run side by side, and --out must be a folder that all nodes share. If a training fails, the table has a gap, and the
    exit code is 1. Run the same command again to continue, and to try failed trainings again.

    Examples:

      pad experiment beta --shards shards/ --heldout heldout/ --vision openai/clip-vit-large-patch14-336
        --llm lmsys/vicuna-7b-v1.5 --out beta/

      pad experiment mine.toml --engine ray --out mine/

      pad experiment paper-at-size --dry-run --card 8xh100
    """
    from pad_pipeline.miniature.shipped import member_reference
    from pad_pipeline.workflows.learning import experiment as workflow
    from pad_pipeline.workflows.learning.grid import table

    options: dict[str, Any] = {
        "shards": shards, "heldout": heldout, "vision": vision, "llm": llm, "data": data, "image_root": image_root,
        "limit": limit, "seeds": list(range(seeds)) if seeds else None,
    }  # fmt: skip
    if card and not dry_run:
        raise UserError("card", card, "it goes with `dry_run` only", "leave it out, or add the other")
    chosen = workflow.read_experiment(file, {name: value for name, value in options.items() if value}, dry_run)
    if steps:
        chosen.stage1["steps"] = steps
    chosen.vision, chosen.llm = member_reference(chosen.vision, "clip"), member_reference(chosen.llm, "llm")
    for cell in chosen.cells.values():
        cell.vision, cell.llm = member_reference(cell.vision, "clip"), member_reference(cell.llm, "llm")
    if dry_run:
        _show_plan(chosen, card, as_json)
        return
    if out is None:
        raise UserError("out", "(empty)", "an experiment needs a folder for its results", "name one")
    if engine == "local":
        refuse_without_ray(address=cluster["address"], gpus=cluster.get("gpus"))
    where = RunOptions(**cluster).cluster if engine == "ray" else None
    found = workflow.run_experiment(chosen, out, where, note)
    print_json(found._asdict()) if as_json else console.print(table(found))
    if found.failed:
        raise typer.Exit(1)


def _show_plan(chosen: Any, card: str, as_json: bool) -> None:
    from pad_pipeline.workflows.cards import Cards
    from pad_pipeline.workflows.learning.dry_run import plan_table, planned, totals

    cards = Cards.parse(card) if card else None
    stages = planned(chosen)
    if as_json:
        print_json({"stages": [stage._asdict() for stage in stages]} | totals(stages, cards))
    else:
        console.print(plan_table(stages, cards))
