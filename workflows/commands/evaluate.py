"""`pad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pad_pipeline.console import console, note, say
from pad_pipeline.workflows.commands.common import AsJson, print_json

EvaluatedModel = Annotated[Path, typer.Option("--model", help="What pad train wrote, or another LLaVA folder.")]
QuestionData = Annotated[Path, typer.Option("--data", help="Questions and what is true, see above.")]
QuestionImages = Annotated[Path, typer.Option("--images", help="Folder of the images.")]
Answers = Annotated[Path, typer.Option("--out", help="Gets answers.jsonl and scores.json; the same command goes on.")]
Prompt = Annotated[str, typer.Option("--prompt", help="Instead of LLaVA-1.5's; {} where phrase or question goes.")]
First = Annotated[int | None, typer.Option("--limit", help="Ask the first questions alone.", min=1)]
Together = Annotated[int, typer.Option("--batch", help="Questions at a time; lower it if memory runs out.", min=1)]


def evaluate_rec(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Boxes of referring expressions, in both frames in use: of the original image (lmms-eval), of the padded square
    (LLaVA).

    The data is RefCOCO, RefCOCO+ or RefCOCOg as MDETR's JSON or as a JSONL of {image, sent, bbox, width, height}.

    Example:

      pad evaluate rec --model two/ --data refcoco_val.jsonl --images train2014/ --out rec/
    """
    _evaluate("rec", model, data, images, out, prompt, limit, batch, as_json)


def evaluate_captions(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Captions of COCO's captions JSON or of a LLaVA JSON: BLEU, ROUGE-L, CIDEr, and with Java METEOR and SPICE.

    Example:

      pad evaluate captions --model two/ --data captions_val2017.json --images val2017/ --limit 500 --out captions/
    """
    _evaluate("captions", model, data, images, out, prompt, limit, batch, as_json)


def evaluate_vqa(
    model: EvaluatedModel, data: QuestionData, images: QuestionImages, out: Answers,
    prompt: Prompt = "", limit: First = None, batch: Together = 16, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Questions of a JSONL of {image, text, answer}, where answer may be a list: exact matches, whatever their case and
    articles.

    Example:

      pad evaluate vqa --model two/ --data questions.jsonl --images val2014/ --out vqa/
    """
    _evaluate("vqa", model, data, images, out, prompt, limit, batch, as_json)


def _evaluate(
    what: str,
    model: Path,
    data: Path,
    images: Path,
    out: Path,
    prompt: str,
    limit: int | None,
    batch: int,
    as_json: bool,
) -> None:
    from pad_pipeline.workflows.learning import ask as workflow

    more = {"prompt": prompt} if prompt else {}
    _print_scores(what, workflow.EVALUATIONS[what](model, data, images, out, limit=limit, batch=batch, **more), as_json)


def _print_scores(title: str, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from pad_pipeline.workflows.learning.analyze import rows_of, shown

    made = Table("score", "value", title=title)
    for name, value in rows_of(found):
        made.add_row(name, shown(value))
    console.print(made)


def evaluate_lmms(
    model: EvaluatedModel,
    out: Annotated[Path, typer.Option(help="Folder for what lmms-eval writes; results in it are shown.")],
    tasks: Annotated[str, typer.Option(help="By lmms-eval's names; empty for the paper's.")] = "",
    processes: Annotated[int, typer.Option(help="GPUs.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """The standard benchmarks (GQA, ScienceQA, VizWiz, OK-VQA, MMMU, MM-Vet, MMBench, MME) through lmms-eval.

    Checks the exported folder first: a processor that crops where the training padded costs points in silence. Where
    lmms-eval is not installed, its exact command is printed. Without --tasks, results that are there already are shown.

    Example:

      pad evaluate lmms --model two/ --tasks gqa,mme --out lmms/
    """
    from pad_pipeline.workflows.learning import lmms as workflow

    for problem in workflow.check_export(model):
        note(f"warning: {problem}")
    found = workflow.read_results(out, model)
    if not found or tasks:
        (note if as_json else say)(workflow.run(model, tasks or workflow.TASKS, out, processes))
        found = workflow.read_results(out, model)
    if found:
        _print_scores("lmms-eval", found, as_json)
