"""The commands `pad train` and `pad chat`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.training.job import Job
from pad_pipeline.training.settings import Stage2Settings, TrainSettings, settings_of
from pad_pipeline.workflows.commands.common import CLUSTER
from pad_pipeline.workflows.commands.options import Options, OptionValues, option, options
from pad_pipeline.workflows.runs.options import RunOptions, parse_workers
from pad_pipeline.workflows.toml import read_settings

DATA, MODEL, TRAINING = "Data", "Model", "Training"
TRAIN_SETTINGS = "projector objective batch_size micro_batch epochs steps learning_rate beta_start beta_end seed"
JOB_OPTIONS = (
    options(Job, DATA, "shards data image_root private_addresses fit")
    | options(Job, MODEL, "vision llm")
    | options(Job, MODEL, "init", Path, unset="")
    | options(Job, TRAINING, "out", Path)
    | options(Job, TRAINING, "stage", default=1)
    | options(Job, TRAINING, "wandb")
)
"""The models, the data and the output folder of a training."""


def _training_options() -> Options:
    """Return the options for settings that a TOML file may hold too."""
    made: Options = {}
    for name in TRAIN_SETTINGS.split():
        first, second = (kind.model_fields[name].default for kind in (TrainSettings, Stage2Settings))
        unset = f"{first}; stage 2: {second}" if first != second else str(first)
        made |= options(TrainSettings, MODEL if name == "projector" else TRAINING, name, unset=unset)
    return made


def train(
    *,
    job: Annotated[OptionValues, JOB_OPTIONS],
    settings: Annotated[Path | None, option(TRAINING, "TOML file with settings, which the options override.")] = None,
    training: Annotated[OptionValues, _training_options()],
    workers: Annotated[str, option(CLUSTER, "Processes of Ray Train: 4, or 2-8 for a range; empty without Ray.")] = "",
    cluster: Annotated[OptionValues, options(RunOptions, CLUSTER, "address gpus wait")],
    max_failures: Annotated[int, option(CLUSTER, "How often workers may die; -1 for any number of times.", min=-1)] = 3,
) -> None:
    """Train a projector with the loss L_caption + beta(t) * L_patch (stage 1), or projector and LLM (stage 2).

    By default, stage 2 has no L_patch, because its --beta-end is 0. Run the same command again to continue a stopped
    training. Under torchrun, its processes share the training.

    Examples:

      pad train --shards shards/ --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out one/

      pad train --stage 2 --data llava_v1_5_mix665k.json --image-root images/ --init one/mm_projector.bin
        --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out two/
    """
    from pad_pipeline.workflows.learning import launch as workflow

    chosen = read_settings(settings_of(job["stage"]), settings, training)
    from pad_pipeline.miniature.shipped import member_reference

    paths = {"out": str(job["out"]), "init": str(job.get("init", ""))}
    parts = {"vision": member_reference(job["vision"], "clip"), "llm": member_reference(job["llm"], "llm")}
    counts = parse_workers(workers) if workers else None
    said = workflow.train(
        Job(**job | paths | parts, settings=chosen), counts, RunOptions(**cluster).cluster, max_failures
    )
    if os.environ.get("RANK", "0") == "0":
        say(said)


def chat(
    model: Annotated[Path, typer.Option(help="Folder that `pad train` wrote, or another Hugging Face LLaVA folder.")],
    image: Annotated[Path, typer.Option(help="The image file.")],
    question: Annotated[str, typer.Argument(help="The question; - reads standard input, one question per line.")] = "-",
    max_tokens: Annotated[int, typer.Option(help="Tokens in an answer at most; the rest is cut.", min=1)] = 256,
) -> None:
    """Ask a trained model questions about an image.

    Each token of an answer is the most probable one. An answer does not depend on earlier questions. Nothing is
    downloaded, and no code from the model's folder runs.

    Examples:

      pad chat --model two/hf --image photo.jpg "What is the dog doing?"

      pad chat --model two/hf --image photo.jpg --max-tokens 30 < questions.txt
    """
    from pad_pipeline.workflows.learning import chat as workflow

    if question == "-" and sys.stdin.isatty():
        errors.print("Type questions, one a line; Ctrl-D ends.")
    for answer in workflow.chat(model, image, question, max_tokens):
        say(answer)
