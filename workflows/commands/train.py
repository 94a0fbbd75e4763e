"""`pad train` and `pad chat`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import CLUSTER, option
from pad_pipeline.workflows.commands.options import Given, Options, options

DATA, MODEL, TRAINING = "Data", "Model", "Training"
NAMES = "projector batch_size micro_batch epochs steps learning_rate beta_start beta_end seed"


def job_options() -> Options:
    """What is trained on what."""
    from pad_pipeline.training.job import Job

    return (
        options(Job, DATA, "shards data image_root fit")
        | options(Job, MODEL, "vision llm")
        | options(Job, MODEL, "init", Path, unset="")
        | options(Job, TRAINING, "out", Path)
        | options(Job, TRAINING, "stage", default=1)
        | options(Job, TRAINING, "wandb")
    )


def training_options() -> Options:
    """Settings of the training that win over those of the file."""
    from pad_pipeline.training.settings import Stage2Settings, TrainSettings

    made: Options = {}
    for name in NAMES.split():
        first, second = (kind.model_fields[name].default for kind in (TrainSettings, Stage2Settings))
        unset = f"{first}; stage 2: {second}" if first != second else str(first)
        made |= options(TrainSettings, MODEL if name == "projector" else TRAINING, name, unset=unset)
    return made


def address_option() -> Options:
    """The Ray cluster that trains."""
    from pad_pipeline.workflows.runs.options import RunOptions

    return options(RunOptions, CLUSTER, "address")


def train(
    *,
    job: Annotated[Given, job_options],
    settings: Annotated[
        Path | None, option(TRAINING, "TOML file with any setting of a training; the options below win over it.")
    ] = None,
    training: Annotated[Given, training_options],
    workers: Annotated[
        str, option(CLUSTER, "Processes of Ray Train, as 4 or fewest-most as 2-8; empty: here, or under torchrun.")
    ] = "",
    address: Annotated[str, address_option] = "",
    max_failures: Annotated[int, option(CLUSTER, "How often workers may die; -1: any number.", min=-1)] = 3,
) -> None:
    """Train: L = L_caption + beta(t) * L_patch. Stage 1 teaches the projector, stage 2 the LLM too.

    A training that was stopped goes on when the same command is run again.

    Examples:

      pad train --shards shards/ --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out one/

      pad train --stage 2 --data llava_v1_5_mix665k.json --image-root images/ --init one/mm_projector.bin
        --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out two/
    """
    shards, data = job["shards"], job["data"]
    if bool(shards) == bool(data):
        given = "both" if shards else "neither"
        raise UserError("--shards or --data", given, "a training reads one of them", "give PAD shards or a LLaVA JSON")
    if job["image_root"] and not data:
        raise UserError("--image-root", job["image_root"], "it goes with --data only", "leave it out")
    from pad_pipeline.training.job import Job
    from pad_pipeline.workflows.learning import launch as workflow

    chosen = workflow.train_settings(settings, training, job["stage"])
    from pad_pipeline.miniature.shipped import resolve

    paths = {"out": str(job["out"]), "init": str(job.get("init", ""))}
    parts = {"vision": resolve(job["vision"], "clip"), "llm": resolve(job["llm"], "llm")}
    what = Job(**job | paths | parts, settings=chosen)
    if address and not workers:
        raise UserError("--address", address, "it goes with --workers only", "say how many workers, or leave it out")
    launch = workflow.Launch(workflow.parse_workers(workers) if workers else (0, 0), address, max_failures)
    said = workflow.train(what, launch)
    if os.environ.get("RANK", "0") == "0":
        say(said)


def chat(
    model: Annotated[Path, typer.Option(help="What pad train wrote, or another Hugging Face LLaVA folder.")],
    image: Annotated[Path, typer.Option(help="The image, a file.")],
    question: Annotated[str, typer.Argument(help="What to ask; - for questions on standard input, one a line.")] = "-",
    max_tokens: Annotated[int, typer.Option(help="An answer is cut behind so many tokens.", min=1)] = 256,
) -> None:
    """Ask a trained model about an image. It says the likeliest token each time, and forgets earlier questions.

    Nothing is downloaded, and no code from the folder runs.

    Examples:

      pad chat --model two/hf --image photo.jpg "What is the dog doing?"

      pad chat --model two/hf --image photo.jpg --max-tokens 30 < questions.txt
    """
    from pad_pipeline.workflows.learning import chat as workflow

    if question == "-" and sys.stdin.isatty():
        errors.print("Questions, one a line; Ctrl-D ends.")
    for answer in workflow.chat(model, image, question, max_tokens):
        say(answer)
