"""`pad train` and `pad chat`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pad_pipeline.console import errors, say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import Fit


class Projector(StrEnum):
    """Which projector."""

    mlp = "mlp"
    linear = "linear"
    c_abstractor = "c-abstractor"


def train(
    vision: Annotated[str, typer.Option(help="CLIP or SigLIP type vision tower: folder, hub name, or `miniature`.")],
    llm: Annotated[str, typer.Option(help="LLaMA, Mistral or Qwen type LLM: folder, hub name, or `miniature`.")],
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoints, mm_projector.bin and hf/.")],
    stage: Annotated[int, typer.Option(help="1: the projector alone. 2: the LLM too.", min=1, max=2)] = 1,
    shards: Annotated[str | None, typer.Option(help="Folder of PAD shards to train on, or its URL.")] = None,
    data: Annotated[str | None, typer.Option(help="Or a LLaVA JSON of dialogues, with images or without.")] = None,
    image_root: Annotated[str | None, typer.Option(help="What the JSON's images are relative to.")] = None,
    fit: Annotated[Fit, typer.Option(help="How a JSON's images are made square; shards say it themselves.")] = Fit.pad,
    init: Annotated[
        Path | None, typer.Option(help="mm_projector.bin to begin with: what stage 1 made, or LLaVA's own.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file with any setting of TrainSettings; the options below win over it.")
    ] = None,
    projector: Annotated[
        Projector | None, typer.Option(help="mlp (default): LLaVA's mlp2x_gelu. linear. c-abstractor: Honeybee's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in one step (256; stage 2: 128).")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Samples computed at a time (8); lower it if memory runs out.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the samples (1).")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="After warm-up (0.001; stage 2: 0.00002).")] = None,
    beta_start: Annotated[float | None, typer.Option(help="Weight of the patch loss in the first step (0).")] = None,
    beta_end: Annotated[
        float | None, typer.Option(help="Weight of the patch loss in the last step (5; stage 2: 0).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the projector's start and the order of samples (0).")] = None,
    workers: Annotated[
        str, typer.Option(help="Processes of Ray Train, as 4 or fewest-most as 2-8; empty: here, or under torchrun.")
    ] = "",
    address: Annotated[str, typer.Option(help="Ray cluster to use; empty starts Ray on this machine.")] = "",
    max_failures: Annotated[int, typer.Option(help="How often workers may die; -1: any number.", min=-1)] = 3,
    wandb: Annotated[str, typer.Option(help="Project of Weights & Biases that gets the log too.")] = "",
) -> None:
    """Train: L = L_caption + beta(t) * L_patch. Stage 1 teaches the projector, stage 2 the LLM too.

    A training that was stopped goes on when the same command is run again.

    Examples:

      pad train --shards shards/ --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out one/

      pad train --stage 2 --data llava_v1_5_mix665k.json --image-root images/ --init one/mm_projector.bin
        --vision openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out two/
    """
    if (shards is None) == (data is None):
        given = "both" if shards else "neither"
        raise UserError("--shards or --data", given, "a training reads one of them", "give PAD shards or a LLaVA JSON")
    if image_root and not data:
        raise UserError("--image-root", image_root, "it goes with --data only", "leave it out")
    from pad_pipeline.workflows.learning import launch as workflow

    options = {
        "projector": projector and projector.value, "batch_size": batch_size, "micro_batch": micro_batch,
        "epochs": epochs, "steps": steps, "learning_rate": learning_rate, "beta_start": beta_start,
        "beta_end": beta_end, "seed": seed,
    }  # fmt: skip
    given_options = {name: value for name, value in options.items() if value is not None}
    chosen = workflow.train_settings(settings, given_options, stage)
    from pad_pipeline.miniature.shipped import resolve

    job = workflow.Job(
        stage=stage,
        shards=shards or "",
        data=data or "",
        image_root=image_root or "",
        fit=fit.value,
        vision=resolve(vision, "clip"),
        llm=resolve(llm, "llm"),
        out=str(out),
        init=str(init or ""),
        wandb=wandb,
        settings=chosen,
    )
    if address and not workers:
        raise UserError("--address", address, "it goes with --workers only", "say how many workers, or leave it out")
    launch = workflow.Launch(workflow.parse_workers(workers) if workers else (0, 0), address, max_failures)
    said = workflow.train(job, launch)
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
