"""The command line: `pad build`, `import`, `train`, `analyze`, `evaluate`, `experiment` and the rest."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from workflows.commands.show import show
from workflows.commands.view import view

if TYPE_CHECKING:
    from pad_pipeline.geometry import View
    from workflows.options import RunOptions

# Heavy modules (torch, transformers, Ray) are imported by the commands that need them, so that --help is instant.

app = typer.Typer(
    help="Build the Patch-Aligned Dataset of arXiv 2505.17316 from captioned images, and train a projector on it.",
    epilog="Start with: pad demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
import_app = typer.Typer(help="Make shards from data that people have annotated already.", no_args_is_help=True)
app.add_typer(import_app, name="import")
miniature_app = typer.Typer(
    help="The drawn world and its five small models: draw scenes, train the models, score them against exact truth.",
    no_args_is_help=True,
)
app.add_typer(miniature_app, name="miniature")
evaluate_app = typer.Typer(help="Ask a trained model, and score what it says.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
models_app = typer.Typer(
    help="The models of a build: where their files come from, whether they are here, whether they are right.",
    no_args_is_help=True,
)
app.add_typer(models_app, name="models")
# An unknown option, a value of the wrong type; typer's base class has no public name of its own.
UsageError: Any = typer.BadParameter.__bases__[0]

console = Console()
errors = Console(stderr=True)


class Engine(StrEnum):
    """Where the stages run."""

    ray = "ray"
    local = "local"


class Placement(StrEnum):
    """Which models share a Ray worker."""

    auto = "auto"
    fused = "fused"
    pools = "pools"


class Depth(StrEnum):
    """What is noted of each input, to know it again."""

    names = "names"
    sizes = "sizes"
    sample = "sample"
    full = "full"


class RedoFrom(StrEnum):
    """The first stage that is done again."""

    tag = "tag"
    ground = "ground"
    segment = "segment"
    patchify = "patchify"


class Fit(StrEnum):
    """How a picture is brought to the view's square."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class Projector(StrEnum):
    """Which projector."""

    mlp = "mlp"
    linear = "linear"
    c_abstractor = "c-abstractor"


Out = Annotated[
    str,
    typer.Option(help="Folder or URL (s3://, gs://) to write into: new, empty, or an earlier run to continue."),
]
Models = Annotated[
    str,
    typer.Option(
        help="`paper` (RAM), `plus` (RAM++), `miniature` (ships with pad; drawn scenes only), or a TOML file."
    ),
]
ViewFit = Annotated[
    Fit | None, typer.Option(help="crop (default): LLaVA-1.5's stage 1. pad: its stage 2. stretch: neither kept.")
]
ViewSize = Annotated[
    int | None,
    typer.Option(help="Edge of the vision encoder's input, in pixels (336; miniature: 112).", min=1, max=4096),
]
Patch = Annotated[
    int | None, typer.Option(help="Edge of one patch, in pixels (14, a grid of 24 x 24; miniature: 8, 14 x 14).", min=1)
]
ShardSize = Annotated[int, typer.Option(help="Images in one shard.", min=1, max=1_000_000)]
EngineOption = Annotated[Engine, typer.Option(help="ray: Ray on this machine or a cluster. local: this process.")]
Address = Annotated[str, typer.Option(help="Address of a running Ray cluster, such as auto or ray://host:10001.")]
Workers = Annotated[int, typer.Option(help="Ray workers for each pool; 0 for one per GPU, or one.", min=0, max=100_000)]
PlacementOption = Annotated[
    Placement,
    typer.Option(
        help="fused: all models in one worker for each GPU. pools: workers of its own for each stage. "
        "auto: fused where every GPU can hold all."
    ),
]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool", help="With pools: STAGE=WORKERS or STAGE=WORKERSxGPUS, such as tag=2x0.25. May be repeated."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Take the first images alone.", min=1, max=10**12)]
Fingerprint = Annotated[
    Depth,
    typer.Option(
        help="What is noted of each image, to know it again on a rerun: names; sizes too; the sha256 of 64 of them; "
        "or of every one (reads everything once)."
    ),
]
Fork = Annotated[
    str | None,
    typer.Option(
        help="New folder: leave the run in --out as it is, and make this one there; shards that would come out the "
        "same are copied."
    ),
]
AcceptCode = Annotated[
    bool, typer.Option("--accept-changed-code", help="Continue a run that another version of pad's code began.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try the failed images of finished shards again, and nothing else.")
]
MaxFailed = Annotated[
    str, typer.Option(help="Exit with 1 where more images failed, in all: a count, or a share such as 5%.")
]
Breaker = Annotated[int, typer.Option(help="Stop when a stage fails for this many images in a row; 0: never.", min=0)]
Threads = Annotated[int, typer.Option(help="CPU threads of each model; 0 for all cores.", min=0, max=1024)]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


@app.command()
def build(
    images: Annotated[
        str,
        typer.Option(
            help="A folder; a LLaVA JSON; a list of paths or URLs (.parquet, .csv, .tsv, .jsonl); WebDataset tars "
            "('tars/*.tar'); or PAD shards. Local, or a URL (https://, s3://, gs://, hf://)."
        ),
    ],
    out: Out,
    image_root: Annotated[
        str | None,
        typer.Option(help="What paths in a JSON or a list are relative to; by default the folder it lies in."),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Columns of a list whose names can't be guessed: image=jpg_url,caption=alt,id=n.")
    ] = "",
    models: Models = "paper",
    tag_list: Annotated[
        str, typer.Option(help="Your own text file with the tagger's labels, one a line, instead of upstream's.")
    ] = "",
    tag_thresholds: Annotated[
        str, typer.Option(help="Your own text file with a probability for each of them, one a line.")
    ] = "",
    fit: ViewFit = None,
    view_size: ViewSize = None,
    patch: Patch = None,
    redo_from: Annotated[
        RedoFrom, typer.Option(help="Of PAD shards: the first stage to do again; what comes before is kept.")
    ] = RedoFrom.tag,
    limit: Limit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, annotate 16 images, and say what the whole would take.")
    ] = False,
    shard_size: ShardSize = 512,
    fingerprint: Fingerprint = Depth.sample,
    fork: Fork = None,
    accept_changed_code: AcceptCode = False,
    retry_failed: RetryFailed = False,
    max_failed: MaxFailed = "100%",
    breaker: Breaker = 100,
    engine: EngineOption = Engine.ray,
    address: Address = "",
    workers: Workers = 0,
    placement: PlacementOption = Placement.auto,
    pool: Pools = None,
    threads: Threads = 0,
) -> None:
    """Annotate images and write patch-aligned shards.

    RAM names what is in an image, Grounding DINO finds where, SAM says which pixels; each region becomes a mask on
    the patch grid and the mean of its label's word embeddings. Run the same command again to continue a run.

    Examples:

      pad build --images photos/ --out shards/

      pad build --images llava.json --image-root photos/ --models plus --out shards/

      pad build --images urls.parquet --columns image=URL,caption=TEXT --out s3://bucket/shards --dry-run

      pad build --images photos/ --out shards/ --retry-failed
    """
    options = _options(
        engine, address, workers, placement, pool, shard_size, limit, fingerprint, fork, accept_changed_code,
        retry_failed, breaker, threads, redo_from,
    )  # fmt: skip
    _check_max_failed(max_failed)
    if dry_run and (fork or retry_failed):
        rule = "it looks at a build from its beginning, and writes nothing"
        raise UserError("--dry-run", "with --fork or --retry-failed", rule, "leave one of them out")
    if engine is Engine.local and not dry_run:
        _supervise()
    from pad_pipeline.sources import open_source

    source = open_source(images, image_root, _columns(columns))  # a wrong path is told before seconds of imports
    if models == "miniature":
        from pad_pipeline.miniature.files import is_drawn

        if not is_drawn(Path(images)):
            note = (
                "note: the miniature knows drawn scenes only (pad miniature draw); of photographs it says nothing true."
            )
            errors.print(note, style="yellow", highlight=False, soft_wrap=True)
    from workflows import build as workflow
    from workflows.models import load_models, with_tags

    chosen = with_tags(load_models(models), tag_list, tag_thresholds)
    view = _view(chosen.view, view_size, patch, fit)
    if dry_run:
        from workflows.dry_run import estimate

        _show_estimate(estimate(source, chosen, view, options))
        return
    totals = workflow.build(source, out, chosen, view, options)
    _finish(totals, fork or out, dict(source.counts), max_failed)


@import_app.command("coco")
def import_coco(
    annotations: Annotated[Path, typer.Option(help="COCO instances.json: polygons, RLE, crowds.")],
    images: Annotated[str, typer.Option(help="Folder or URL that file_name is relative to.")],
    out: Out,
    captions: Annotated[
        Path | None, typer.Option(help="Captions from another file: COCO captions.json, or a LLaVA JSON.")
    ] = None,
    models: Models = "paper",
    fit: ViewFit = None,
    view_size: ViewSize = None,
    patch: Patch = None,
    limit: Limit = None,
    shard_size: ShardSize = 512,
    fingerprint: Fingerprint = Depth.sample,
    fork: Fork = None,
    accept_changed_code: AcceptCode = False,
    retry_failed: RetryFailed = False,
    max_failed: MaxFailed = "100%",
    breaker: Breaker = 100,
    engine: EngineOption = Engine.local,
    address: Address = "",
    workers: Workers = 0,
) -> None:
    """Write shards from COCO annotations: human masks as regions, categories as labels.

    Of the models only the LLM's word embeddings and the decode settings are used.

    Example:

      pad import coco --annotations instances_val2017.json --images val2017/ --out human/
    """
    options = _options(
        engine, address, workers, Placement.auto, None, shard_size, limit, fingerprint, fork, accept_changed_code,
        retry_failed, breaker, 0,
    )  # fmt: skip
    _check_max_failed(max_failed)
    if engine is Engine.local:
        _supervise()
    from pad_pipeline.sources.coco import CocoSource

    source = CocoSource(annotations, images, captions)
    from workflows import build as workflow
    from workflows.models import load_models

    settings = load_models(models)
    view = _view(settings.view, view_size, patch, fit)
    totals = workflow.import_coco(source, out, settings.llm, settings.decode, view, options)
    _finish(totals, fork or out, dict(source.counts), max_failed)


@app.command()
def train(
    vision: Annotated[str, typer.Option(help="CLIP or SigLIP type vision tower: folder, hub name, or `miniature`.")],
    llm: Annotated[str, typer.Option(help="LLaMA, Mistral or Qwen type LLM: folder, hub name, or `miniature`.")],
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoints, mm_projector.bin and hf/.")],
    stage: Annotated[int, typer.Option(help="1: the projector alone. 2: the LLM too.", min=1, max=2)] = 1,
    shards: Annotated[str | None, typer.Option(help="Folder of PAD shards to train on, or its URL.")] = None,
    data: Annotated[str | None, typer.Option(help="Or a LLaVA JSON of dialogues, with images or without.")] = None,
    image_root: Annotated[str | None, typer.Option(help="What the JSON's images are relative to.")] = None,
    fit: Annotated[
        Fit, typer.Option(help="How a JSON's pictures are made square; shards say it themselves.")
    ] = Fit.pad,
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
    from workflows import train as workflow

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
        console.print(said, markup=False, soft_wrap=True)


class Analysis(StrEnum):
    """What `pad analyze` measures."""

    all = "all"
    entropy = "entropy"
    align = "align"
    pursuit = "pursuit"
    lens = "lens"
    overlap = "overlap"
    health = "health"


@app.command()
def analyze(
    what: Annotated[Analysis, typer.Argument(help="Which analysis.")],
    model: Annotated[
        Path, typer.Option(help="What pad train wrote, a Hugging Face LLaVA folder, or mm_projector.bin.")
    ],
    shards: Annotated[str, typer.Option(help="PAD shards of pictures that it was not trained on: a folder or URL.")],
    out: Annotated[Path | None, typer.Option(help="Folder that gets analysis.json and pictures.")] = None,
    vision: Annotated[str, typer.Option(help="Of a mm_projector.bin: its tower, or `miniature`.")] = "",
    llm: Annotated[str, typer.Option(help="Of a mm_projector.bin: its LLM, or `miniature`.")] = "",
    vision_layer: Annotated[int, typer.Option(help="Of a mm_projector.bin: the tower's layer that it projects.")] = -2,
    settings: Annotated[Path | None, typer.Option(help="TOML with what the paper leaves open.")] = None,
    limit: Annotated[int | None, typer.Option(help="Look at the first pictures alone.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Pictures computed at a time; lower it if memory runs out.", min=1)] = 32,
    pictures: Annotated[
        int, typer.Option(help="How many pictures are drawn, with the words of each patch.", min=0)
    ] = 4,
    captions: Annotated[Path | None, typer.Option(help="For health: scores.json of pad evaluate captions.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="For health: that of a caption-only model.")] = None,
) -> None:
    """Did the alignment work? Compression, patches against words, words of each patch.

    entropy: von Neumann entropy before and after the projector, dH. align: Align(V, W), patch-level mIoU, beside
    shuffled labels, shuffled patches and an untrained projector. pursuit: each vision token as a sum of words. lens:
    its nearest word, and the LLM's logit lens. overlap: nearest neighbours that the projector keeps. health: the
    paper's signs of failure (Align below 0.15, more than half of the patches without a readable word, captions below
    those of a caption-only model); the exit code is 1 where one is seen.

    Examples:

      pad analyze all --model two/ --shards heldout/ --out analysis/

      pad analyze align --model mm_projector.bin --vision openai/clip-vit-large-patch14-336
        --llm lmsys/vicuna-7b-v1.5 --shards heldout/ --limit 1000
    """
    from pad_pipeline.analysis.model import Subject
    from pad_pipeline.miniature.shipped import resolve
    from workflows import analyse as workflow

    chosen = workflow.analysis_settings(settings, {})
    healthy = what is Analysis.health
    if (captions is None) != (baseline is None) or (captions and not healthy):
        rule = "both go together, and with health only"
        raise UserError("--captions or --baseline", captions or baseline, rule, "give both, or neither")
    names = list(workflow.STUDIES) if what is Analysis.all else ["align", "pursuit"] if healthy else [what.value]
    scores = workflow.captions_below(captions, baseline) if captions and baseline else []
    subject = Subject(model, resolve(vision, "clip"), resolve(llm, "llm"), vision_layer)
    found = workflow.analyse(names, subject, shards, chosen, out, limit, batch, pictures)
    console.print(workflow.table(found))
    if healthy:
        signs = workflow.signs_of_failure(found, chosen) + scores
        for sign in signs:
            console.print(f"sign of failure: {sign}", markup=False, soft_wrap=True)
        if signs:
            raise typer.Exit(1)
        console.print("No sign of failure.")


EvaluatedModel = Annotated[Path, typer.Option("--model", help="What pad train wrote, or another LLaVA folder.")]
QuestionData = Annotated[Path, typer.Option("--data", help="Questions and what is true, see above.")]
QuestionImages = Annotated[Path, typer.Option("--images", help="Folder of the pictures.")]
Answers = Annotated[Path, typer.Option("--out", help="Gets answers.jsonl and scores.json; the same command goes on.")]
Prompt = Annotated[str, typer.Option("--prompt", help="Instead of LLaVA-1.5's; {} where phrase or question goes.")]
First = Annotated[int | None, typer.Option("--limit", help="Ask the first questions alone.", min=1)]
Together = Annotated[int, typer.Option("--batch", help="Questions at a time; lower it if memory runs out.", min=1)]


@evaluate_app.command("rec")
def evaluate_rec(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16,
) -> None:  # fmt: skip
    """Boxes of referring expressions, in both frames in use: of the original picture (lmms-eval), of the padded square
    (LLaVA).

    The data is RefCOCO, RefCOCO+ or RefCOCOg as MDETR's JSON or as a JSONL of {image, sent, bbox, width, height}.

    Example:

      pad evaluate rec --model two/ --data refcoco_val.jsonl --images train2014/ --out rec/
    """
    _evaluate("rec", model, data, images, out, prompt, limit, batch)


@evaluate_app.command("captions")
def evaluate_captions(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16,
) -> None:  # fmt: skip
    """Captions of COCO's captions JSON or of a LLaVA JSON: BLEU, ROUGE-L, CIDEr, and with Java METEOR and SPICE.

    Example:

      pad evaluate captions --model two/ --data captions_val2017.json --images val2017/ --limit 500 --out captions/
    """
    _evaluate("captions", model, data, images, out, prompt, limit, batch)


@evaluate_app.command("vqa")
def evaluate_vqa(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16,
) -> None:  # fmt: skip
    """Questions of a JSONL of {image, text, answer}, where answer may be a list: exact matches, whatever their case and
    articles.

    Example:

      pad evaluate vqa --model two/ --data questions.jsonl --images val2014/ --out vqa/
    """
    _evaluate("vqa", model, data, images, out, prompt, limit, batch)


def _evaluate(
    what: str, model: Path, data: Path, images: Path, out: Path, prompt: str, limit: int | None, batch: int
) -> None:
    from workflows import evaluate as workflow

    more = {"prompt": prompt} if prompt else {}
    _print_scores(what, workflow.EVALUATIONS[what](model, data, images, out, limit=limit, batch=batch, **more))


def _print_scores(title: str, found: dict[str, Any]) -> None:
    from workflows.analyse import rows_of, shown

    made = Table("score", "value", title=title)
    for name, value in rows_of(found):
        made.add_row(name, shown(value))
    console.print(made)


@evaluate_app.command("lmms")
def evaluate_lmms(
    model: EvaluatedModel,
    out: Annotated[Path, typer.Option(help="Folder for what lmms-eval writes; results in it are shown.")],
    tasks: Annotated[str, typer.Option(help="By lmms-eval's names; empty for the paper's.")] = "",
    processes: Annotated[int, typer.Option(help="GPUs.", min=1)] = 1,
) -> None:
    """The standard benchmarks (GQA, ScienceQA, VizWiz, OK-VQA, MMMU, MM-Vet, MMBench, MME) through lmms-eval.

    Checks the exported folder first: a processor that crops where the training padded costs points in silence. Where
    lmms-eval is not installed, its exact command is printed. Without --tasks, results that are there already are shown.

    Example:

      pad evaluate lmms --model two/ --tasks gqa,mme --out lmms/
    """
    from workflows import lmms as workflow

    for problem in workflow.check_export(model):
        console.print(f"warning: {problem}", markup=False, soft_wrap=True)
    found = workflow.read_results(out, model)
    if not found or tasks:
        console.print(workflow.run(model, tasks or workflow.TASKS, out, processes), markup=False, soft_wrap=True)
        found = workflow.read_results(out, model)
    if found:
        _print_scores("lmms-eval", found)


@app.command()
def experiment(
    file: Annotated[str, typer.Argument(help="A TOML file, or a recipe: beta, projector, coverage, loss, llms.")],
    out: Annotated[Path, typer.Option(help="Gets a folder for each training, and experiment.json.")],
    shards: Annotated[str, typer.Option(help="What stage 1 is trained on.")] = "",
    heldout: Annotated[str, typer.Option(help="Shards of other pictures, which the analyses look at.")] = "",
    vision: Annotated[str, typer.Option(help="Vision tower, or `miniature`.")] = "",
    llm: Annotated[str, typer.Option(help="LLM, or `miniature`.")] = "",
    data: Annotated[str, typer.Option(help="LLaVA JSON, for stage 2; without it, stage 1 alone.")] = "",
    image_root: Annotated[str, typer.Option(help="What its images are relative to.")] = "",
    seeds: Annotated[int | None, typer.Option(help="Each cell is trained so often (3).", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of stage 1, where a cell does not say.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="Pictures that the analyses look at.", min=1)] = None,
    engine: EngineOption = Engine.local,
    address: Annotated[str, typer.Option(help="Ray cluster to use; empty starts Ray on this machine.")] = "",
) -> None:
    """A grid of trainings over the same shards, each with every seed, each analysed; one table at the end.

    With --engine ray the trainings run side by side. The same command goes on where it was stopped.

    Examples:

      pad experiment beta --shards shards/ --heldout heldout/ --vision openai/clip-vit-large-patch14-336
        --llm lmsys/vicuna-7b-v1.5 --out beta/

      pad experiment mine.toml --engine ray --out mine/
    """
    from pad_pipeline.miniature.shipped import resolve
    from workflows import experiment as workflow

    options: dict[str, Any] = {
        "shards": shards, "heldout": heldout, "vision": vision, "llm": llm, "data": data, "image_root": image_root,
        "limit": limit, "seeds": list(range(seeds)) if seeds else None,
    }  # fmt: skip
    chosen = workflow.read_experiment(file, {name: value for name, value in options.items() if value})
    if steps:
        chosen.stage1["steps"] = steps
    chosen.vision, chosen.llm = resolve(chosen.vision, "clip"), resolve(chosen.llm, "llm")
    for cell in chosen.cells.values():
        cell.vision, cell.llm = resolve(cell.vision, "clip"), resolve(cell.llm, "llm")
    where = address if engine is Engine.ray else None
    found = workflow.run_experiment(chosen, out, where, lambda text: errors.print(text, markup=False, soft_wrap=True))
    console.print(workflow.table(found))


@app.command()
def chat(
    model: Annotated[Path, typer.Option(help="What pad train wrote, or another Hugging Face LLaVA folder.")],
    image: Annotated[Path, typer.Option(help="The picture, a file.")],
    question: Annotated[str, typer.Argument(help="What to ask; - for questions on standard input, one a line.")] = "-",
    max_tokens: Annotated[int, typer.Option(help="An answer is cut behind so many tokens.", min=1)] = 256,
) -> None:
    """Ask a trained model about a picture. It says the likeliest token each time, and forgets earlier questions.

    Nothing is downloaded, and no code from the folder runs.

    Examples:

      pad chat --model two/hf --image photo.jpg "What is the dog doing?"

      pad chat --model two/hf --image photo.jpg --max-tokens 30 < questions.txt
    """
    from workflows import chat as workflow

    if question == "-" and sys.stdin.isatty():
        errors.print("Questions, one a line; Ctrl-D ends.")
    for answer in workflow.chat(model, image, question, max_tokens):
        console.print(answer, markup=False, highlight=False, soft_wrap=True)


@app.command()
def verify(
    shards: Shards,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every picture and mask too, and compute each coverage anew.")
    ] = False,
) -> None:
    """Check a run: every planned image in exactly one place, every byte the one that was written. Exit code 1 names
    what is wrong.

    Examples:

      pad verify shards/

      pad verify shards/ --deep
    """
    from rich.progress import track

    from pad_pipeline.shards.run import Run
    from pad_pipeline.shards.verify import verify_run
    from pad_pipeline.storage import folder_at

    shards_planned = Run.read(folder_at(shards)).shards
    wrong = 0
    parts = verify_run(shards, deep)
    for name, problems in track(
        parts, "checking", total=shards_planned + 2, console=errors, disable=not errors.is_terminal
    ):
        wrong += bool(problems)
        for problem in problems:
            console.print(_plain(f"{name}: {problem}"), highlight=False, soft_wrap=True)
    if wrong:
        console.print(f"[red]{wrong} not as it should be, of {_count(shards_planned, 'shard')}.[/red]")
        hint = "To make a shard anew, delete its .parquet and run the command that built it again."
        console.print(hint, markup=False, soft_wrap=True)
        raise typer.Exit(1)
    console.print(f"[green]Whole: {_count(shards_planned, 'shard')}.[/green]")


@app.command()
def stats(
    shards: Shards,
    top: Annotated[int, typer.Option(help="How many labels to list.", min=0)] = 15,
    json: Annotated[bool, typer.Option("--json", help="For programs: everything, as JSON.")] = False,
) -> None:
    """Print images, statuses, regions and labels of a run.

    Example:

      pad stats shards/ --top 30
    """
    from pad_pipeline.shards.stats import as_json, read_statistics

    found = read_statistics(shards)
    if json:
        typer.echo(as_json(found))
        return
    table = Table("what", "how many", title=_plain(str(shards)))
    run = found.shards.run
    table.add_row("shards finished", f"{len(found.shards.names)} of {run.shards}")
    table.add_row("images", str(found.images))
    for status in ("ok", "empty", "failed"):
        table.add_row(f"  {status}", str(found.statuses[status]))
    table.add_row("with a caption", str(found.captions))
    for what, number in run.counts.items():
        table.add_row(_plain(what), str(number))
    table.add_row("tags", str(found.tags))
    table.add_row("regions", str(found.regions))
    table.add_row("  crowds", str(found.crowds))
    table.add_row(f"  outside the view ({run.view.fit})", str(found.out_of_view))
    table.add_row("labels", str(len(found.labels)))
    console.print(table)
    if found.labels and top:
        labels = Table("label", "regions")
        for label, number in found.labels.most_common(top):
            labels.add_row(_plain(label), str(number))
        console.print(labels)
    if found.failures:
        failures = Table("stage", "reason", "images", "such as", title="quarantine")
        for (stage, reason), sources in sorted(found.failures.items(), key=lambda entry: -len(entry[1]))[:20]:
            failures.add_row(_plain(stage), _plain(reason), str(len(sources)), _plain(sources[0]))
        console.print(failures)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    scenes: Annotated[int, typer.Option(help="How many scenes to draw.", min=2)] = 200,
    steps: Annotated[int, typer.Option(help="Of each of the two trainings.", min=1)] = 100,
    engine: EngineOption = Engine.ray,
) -> None:
    """See it work, without network: annotate drawn scenes, score them, train a projector with and without patch loss.

    Example:

      pad demo --out demo-out/
    """
    from workflows.demo import run_demo

    run_demo(out, scenes, steps, engine.value, console)


app.command()(view)
app.command()(show)


ModelsArgument = Annotated[str, typer.Argument(help="`paper`, `plus`, `miniature`, or a TOML file.")]


@models_app.command("list")
def models_list(
    models: Annotated[str, typer.Argument(help="`paper`, `plus`, `miniature`, or a TOML file; all presets.")] = "",
) -> None:
    """Print the files of each choice of models, how large they are, whether their hash is pinned, where they lie here.

    Example:

      pad models list plus
    """
    from workflows.catalogue import OFFICIAL
    from workflows.model_files import parts
    from workflows.models import PRESETS, load_models

    for name in [models] if models else [*PRESETS, "miniature"]:
        console.print(f"[bold]--models {_escaped(name)}[/bold]")
        for part in parts(load_models(name)):
            size = f"{part.megabytes / 1000:.2f} GB" if part.megabytes else ""
            pinned = f"sha256 {part.sha256[:12]}..." if part.sha256 else "any sha256"
            place = f"[green]here[/green]: {_escaped(str(part.place))}" if part.place else "[yellow]not here[/yellow]"
            console.print(f"  {part.field:18} {size:8} {pinned:22} {place}", highlight=False, soft_wrap=True)
            console.print(f"  {'':18} from {_escaped(part.reference)}", highlight=False, soft_wrap=True, style="dim")
    if not models:
        names = Table("short name", "what", "size", title="official files that a TOML file can name")
        for name, file in OFFICIAL.items():
            names.add_row(name, file.what, f"{file.megabytes / 1000:.2f} GB" if file.megabytes else "")
        console.print(names)


@models_app.command("fetch")
def models_fetch(models: ModelsArgument = "paper") -> None:
    """Fetch every file of a choice of models into the caches, check hashes, convert once; then no build waits for it.

    Example:

      pad models fetch plus
    """
    from workflows.chain import label_fingerprint, weight_fingerprints
    from workflows.models import load_models

    chosen = load_models(models)
    found = weight_fingerprints(chosen) | label_fingerprint(chosen.llm)[0]
    for name, digest in sorted(found.items()):
        console.print(f"{name:18} sha256 {digest}", highlight=False, soft_wrap=True)
    models_check(models)


@models_app.command("check")
def models_check(models: ModelsArgument = "paper") -> None:
    """Read every file of a choice of models as a build would: hashes, tensors, tag list, tokenizer. Nothing is fetched.
    Exit code 1 names what is missing or wrong.

    Example:

      pad models check my-models.toml
    """
    from workflows.model_files import check
    from workflows.models import load_models

    wrong = 0
    for name, what, error in check(load_models(models)):
        wrong += error is not None
        said = f"[red]wrong[/red]: {_escaped(str(error))}" if error else f"[green]right[/green]: {_escaped(what)}"
        console.print(f"{name:10} {said}", highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@miniature_app.command("draw")
def miniature_draw(
    count: Annotated[int, typer.Option(help="How many scenes.", min=1, max=100_000)],
    out: Annotated[Path, typer.Option(help="Folder: new, empty, or drawn scenes to draw over.")],
    seed: Annotated[int, typer.Option(help="Of the world: each has its own scenes.", min=0, max=999_999)] = 0,
) -> None:
    """Draw scenes: pictures, LLaVA JSON for both stages, exact masks as COCO JSON, referring expressions.

    Example:

      pad miniature draw --count 100 --out world/
    """
    from rich.progress import track

    from pad_pipeline.miniature.files import write_world

    steps = track(range(count), "drawing", console=errors, disable=not errors.is_terminal)
    world = write_world(out, count, seed, steps)
    console.print(
        f"{_count(count, 'scene')} in {out}: {', '.join(path.name for path in world)}", markup=False, soft_wrap=True
    )


class Member(StrEnum):
    """A model of the miniature."""

    tagger = "tagger"
    detector = "detector"
    segmenter = "segmenter"
    clip = "clip"
    llm = "llm"
    all = "all"


@miniature_app.command("train")
def miniature_train(
    model: Annotated[Member, typer.Argument(help="Which; the detector needs a trained tagger.")],
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
    from workflows.miniature.train import train_miniature

    console.print(str(train_miniature(model.value, out, seed, steps)), soft_wrap=True)


@miniature_app.command("evaluate")
def miniature_evaluate(
    out: Annotated[Path, typer.Option(help="New folder for scenes, shards, projectors and evaluation.json.")],
    scenes: Annotated[int, typer.Option(help="Scenes to annotate and score.", min=2, max=100_000)] = 500,
    seeds: Annotated[int, typer.Option(help="Pairs of projectors, with and without patch loss.", min=0)] = 3,
    steps: Annotated[int, typer.Option(help="Of each projector's training.", min=1)] = 100,
    models: Annotated[str, typer.Option(help="`miniature`, or the TOML of models for the same labels.")] = "miniature",
    vision: Annotated[str, typer.Option(help="The CLIP that goes with them: `miniature` or a folder.")] = "miniature",
    engine: EngineOption = Engine.local,
) -> None:
    """Score the miniature on scenes that it was never trained on, through `pad build` and `pad train`.

    Example:

      pad miniature evaluate --out evaluation/
    """
    from pad_pipeline.miniature.shipped import resolve
    from workflows.miniature import evaluate as workflow
    from workflows.models import load_models

    chosen, tower = load_models(models), resolve(vision, "clip")
    found = workflow.evaluate(out, chosen, tower, scenes, seeds, steps, engine.value, console)
    console.print(workflow.table(found))


@miniature_app.command("compare")
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
    engine: EngineOption = Engine.local,
    threads: Threads = 0,
) -> None:
    """Train both stages with and without the patch loss, and compare: patches, captions, referring expressions.

    Run the same command again to continue.

    Example:

      pad miniature compare --out comparison/
    """
    from pad_pipeline.miniature.shipped import resolve
    from workflows.miniature import compare as workflow
    from workflows.models import load_models

    chosen, tower = load_models(models), resolve(vision, "clip")
    budget = workflow.Budget(scenes, dialogues, seeds, stage1_steps, stage2_steps, probes)
    comparison = workflow.Comparison(out, chosen, tower, budget, console)
    comparison.prepare(engine.value, threads)
    console.print(workflow.table(comparison.run()))


def _count(number: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def _escaped(text: str) -> str:
    """Text of unknown origin inside markup."""
    from rich.markup import escape

    return escape(_plain(text).plain)


def _plain(text: str) -> Any:
    """Text of unknown origin, shown as it is: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def _view(usual: View, size: int | None, patch: int | None, fit: Fit | None) -> View:
    """The models' own view, changed by what the options say."""
    from pydantic import ValidationError

    from workflows.settings import settings_error

    size, patch = size or usual.size, patch or usual.patch
    if size % patch:
        raise UserError("--view-size", size, f"it must be a multiple of --patch {patch}", "correct one of them")
    try:
        return type(usual)(size=size, patch=patch, fit=fit.value if fit else usual.fit)
    except ValidationError as error:
        raise settings_error(error, "--view-size and --patch") from error


def _options(
    engine: Engine,
    address: str,
    workers: int,
    placement: Placement,
    pools: list[str] | None,
    shard_size: int,
    limit: int | None,
    depth: Depth,
    fork: str | None,
    accept_changed_code: bool,
    retry_failed: bool,
    breaker: int,
    threads: int,
    redo_from: RedoFrom = RedoFrom.tag,
) -> RunOptions:
    """The options of a run, checked against each other."""
    if engine is Engine.local:
        given = {
            "--address": address,
            "--workers": workers,
            "--placement": "" if placement is Placement.auto else placement.value,
            "--pool": " ".join(pools or []),
        }
        for option, value in given.items():
            if value:
                raise UserError(option, value, "it goes with --engine ray", "leave it out, or use --engine ray")
    if fork and retry_failed:
        raise UserError("--fork", fork, "it makes a new run, and --retry-failed mends one", "leave one of them out")

    from workflows.options import RunOptions

    return RunOptions(
        shard_size=shard_size,
        limit=limit,
        redo_from=redo_from.value,
        depth=depth.value,
        engine=engine.value,
        address=address,
        workers=workers,
        placement=placement.value,
        pools=_pools(pools),
        threads=threads,
        fork=fork,
        accept_changed_code=accept_changed_code,
        retry_failed=retry_failed,
        breaker=breaker,
    )


def _pools(options: list[str] | None) -> dict[str, Any]:
    if not options:
        return {}
    from workflows.placement import parse_pools

    return parse_pools(options)


def _supervise() -> None:
    """Before anything is loaded that would not survive a fork."""
    from workflows import supervise

    supervise.supervised()


def _columns(text: str) -> dict[str, str]:
    """`image=url,caption=alt` as a mapping."""
    columns = {}
    for entry in filter(None, text.split(",")):
        name, equals, column = (part.strip() for part in entry.partition("="))
        if not (name and equals and column):
            raise UserError(
                "--columns", text, "it should be NAME=COLUMN,...", "write for instance image=url,caption=alt"
            )
        columns[name] = column
    return columns


def _check_max_failed(text: str) -> None:
    from workflows.limits import failures_allowed

    failures_allowed(text, 0)


def _show_estimate(found: Any) -> None:
    table = Table("what", "how much", title="dry run: nothing was written")
    table.add_row("images", f"{found.images:,} in {found.shards:,} shards")
    table.add_row("their files", _bytes(found.input_bytes) + " (as far as sizes are known)")
    table.add_row("annotated to measure", f"{_count(found.sampled, 'image')}, {found.failed} failed")
    where = "one GPU" if found.on_gpu else "this CPU"
    for name, seconds in found.seconds.items():
        table.add_row(f"  {name}", f"{seconds:.3f} s an image")
    table.add_row(f"all of it, one worker on {where}", f"{found.hours:,.2f} hours")
    table.add_row("of that in the models", f"{found.gpu_hours:,.2f} {'GPU hours' if found.on_gpu else 'hours'}")
    table.add_row("shards", f"{_bytes(found.storage_bytes)} ({_bytes(found.bytes_per_image)} an image)")
    console.print(table)


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def _finish(totals: dict[str, int], out: str, counts: dict[str, int], max_failed: str) -> None:
    """Say what came out; exit code 1 where more images failed than may."""
    from workflows.limits import failures_allowed

    for what, number in counts.items():
        console.print(_plain(f"{number} {what}"), highlight=False)
    console.print(
        f"{_count(totals['images'], 'image')} in {out}: {totals['ok']} ok, {totals['empty']} empty, "
        f"{totals['failed']} failed; {_count(totals['regions'], 'region')}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if totals["failed"]:
        console.print(f"`pad stats {out}` says why images failed.", markup=False, highlight=False, soft_wrap=True)
    if totals["failed"] == totals["images"]:
        raise UserError(
            "--images", _count(totals["images"], "image"), "every one of them failed", f"see pad stats {out}"
        )
    allowed = failures_allowed(max_failed, totals["images"])
    if totals["failed"] > allowed:
        failed = f"{totals['failed']} of {_count(totals['images'], 'image')} failed"
        text = f"{failed}; --max-failed {max_failed} allows {allowed}. `pad stats {out}` says why."
        errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"pad {__version__}")
        raise typer.Exit


def _after_a_stop(command: list[str]) -> str:
    if command[:1] == ["train"]:
        return "Run the same command again to go on from the last checkpoint."
    if command[:1] == ["demo"] or command == ["miniature", "evaluate"]:
        return "Delete the --out folder, or name another one, to start anew."
    if command[:1] == ["view"]:
        return "Run the same command again; a report is written anew."
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
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with _terminable() as received:
            code = _run_app(received)
    finally:
        if "workflows.supervise" in sys.modules:
            sys.modules["workflows.supervise"].ended()
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
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except UsageError as error:
        error.show()
        return 2
    except OSError as error:
        rule = error.strerror or " ".join(str(error).split())
        errors.print(
            f"error: file = {error.filename}: {rule}; mend it and try again", style="red", markup=False, soft_wrap=True
        )
        return 2
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
        with suppress(OSError):  # the terminal may be gone
            errors.print(f"Stopped. {_after_a_stop(sys.argv[1:3])}")
    return int(code)
