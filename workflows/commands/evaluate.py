"""The commands of `pad evaluate`: ask a trained model, and score its answers."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pad_pipeline.console import console, note, say
from pad_pipeline.workflows.commands.common import AsJson, print_json
from pad_pipeline.workflows.commands.options import Given, Options, option

Model = Annotated[Path, option(None, "Folder that `pad train` wrote, or another LLaVA folder.", "--model")]
REQUIRED = Parameter.empty
QUESTIONS: Options = {
    "model": (Model, REQUIRED),
    "data": (Annotated[Path, option(None, "File with the questions and the right answers.")], REQUIRED),
    "images": (Annotated[Path, option(None, "Folder of the images.")], REQUIRED),
    "out": (Annotated[Path, option(None, "Folder for answers.jsonl and scores.json; rerun to continue.")], REQUIRED),
    "prompt": (Annotated[str, option(None, "Prompt; {} stands for the phrase or question (LLaVA-1.5's).")], ""),
    "limit": (Annotated[int | None, option(None, "Ask only so many questions, the first ones.", min=1)], None),
    "batch": (Annotated[int, option(None, "Questions at a time; lower it if memory runs out.", min=1)], 16),
    "as_json": (AsJson, False),
}
"""The options of the three evaluations."""


def evaluate_rec(*, questions: Annotated[Given, QUESTIONS]) -> None:
    """Score a model's boxes for referring expressions, as shares of the original image and of the padded square.

    lmms-eval takes boxes for shares of the original image, LLaVA for shares of the padded square. The data is RefCOCO,
    RefCOCO+ or RefCOCOg as MDETR's JSON or as a JSONL of {image, sent, bbox, width, height}.

    Example:

      pad evaluate rec --model two/ --data refcoco_val.jsonl --images train2014/ --out rec/
    """
    _evaluate("rec", **questions)


def evaluate_captions(*, questions: Annotated[Given, QUESTIONS]) -> None:
    """Score a model's captions with BLEU, ROUGE-L and CIDEr, and if Java is installed with METEOR and SPICE.

    The data is COCO's captions JSON or a LLaVA JSON.

    Example:

      pad evaluate captions --model two/ --data captions_val2017.json --images val2017/ --limit 500 --out captions/
    """
    _evaluate("captions", **questions)


def evaluate_vqa(*, questions: Annotated[Given, QUESTIONS]) -> None:
    """Score a model's answers to questions by exact match, without regard to case and articles.

    The data is a JSONL of {image, text, answer}, where answer may be a list of right answers.

    Example:

      pad evaluate vqa --model two/ --data questions.jsonl --images val2014/ --out vqa/
    """
    _evaluate("vqa", **questions)


def _evaluate(what: str, *, as_json: bool, prompt: str, **questions: Any) -> None:
    from pad_pipeline.workflows.learning import ask as workflow

    questions |= {"prompt": prompt} if prompt else {}
    _print_scores(what, workflow.EVALUATIONS[what](**questions), as_json)


def _print_scores(title: str, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from pad_pipeline.workflows.learning.analyze import flat_rows, format_value

    made = Table("score", "value", title=title)
    for name, value in flat_rows(found):
        made.add_row(name, format_value(value))
    console.print(made)


def evaluate_lmms(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for what lmms-eval writes; results in it are shown.")],
    tasks: Annotated[str, typer.Option(help="Tasks by lmms-eval's names; empty for the paper's.")] = "",
    processes: Annotated[int, typer.Option(help="Processes, one for each GPU.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Run the standard benchmarks (GQA, ScienceQA, VizWiz, OK-VQA, MMMU, MM-Vet, MMBench, MME) with lmms-eval.

    The exported folder is checked first: a processor that crops where the training padded costs points without a
    message. If lmms-eval is not installed, its exact command is printed. Without --tasks, results that are there
    already are shown.

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
