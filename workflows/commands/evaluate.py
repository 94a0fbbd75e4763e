"""The commands of `pad evaluate`, which ask a trained model questions and score its answers."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_pipeline.console import Table, console, note
from pad_pipeline.workflows.commands.common import FROM_FIRST, AsJson, print_json
from pad_pipeline.workflows.commands.options import Options, OptionValues, option

Model = Annotated[Path, option(None, "Folder that `pad train` wrote, or another LLaVA folder.", "--model")]
REQUIRED = Parameter.empty
QUESTIONS: Options = {
    "model": (Model, REQUIRED),
    "data": (Annotated[Path, option(None, "File with questions and correct answers.")], REQUIRED),
    "images": (Annotated[Path, option(None, "Folder of the images.")], REQUIRED),
    "out": (Annotated[Path, option(None, "Folder for answers.jsonl and scores.json; rerun to continue.")], REQUIRED),
    "prompt": (Annotated[str, option(None, "Prompt, with {} for the phrase or question; by default LLaVA-1.5's.")], ""),
    "limit": (Annotated[int | None, option(None, f"Number of questions, {FROM_FIRST}.", min=1)], None),
    "batch": (Annotated[int, option(None, "Questions in one batch; lower it if memory runs out.", min=1)], 16),
    "as_json": (AsJson, False),
}
"""The options of the commands `rec`, `captions` and `vqa`."""


def evaluate_rec(*, questions: Annotated[OptionValues, QUESTIONS]) -> None:
    """Score the boxes that a model gives for referring expressions.

    Each box is scored twice: its coordinates are read as shares of the original image, as in lmms-eval, and of the
    padded square, as in LLaVA. The data is RefCOCO, RefCOCO+ or RefCOCOg as MDETR's JSON, or a JSONL of {image, sent,
    bbox, width, height}.

    Example:

      pad evaluate rec --model two/ --data refcoco_val.jsonl --images train2014/ --out rec/
    """
    _evaluate("rec", **questions)


def evaluate_captions(*, questions: Annotated[OptionValues, QUESTIONS]) -> None:
    """Score a model's captions with BLEU, ROUGE-L and CIDEr; with METEOR and SPICE too if Java is installed.

    The data is COCO's captions JSON or a LLaVA JSON.

    Example:

      pad evaluate captions --model two/ --data captions_val2017.json --images val2017/ --limit 500 --out captions/
    """
    _evaluate("captions", **questions)


def evaluate_vqa(*, questions: Annotated[OptionValues, QUESTIONS]) -> None:
    """Score a model's answers to questions by exact match; case and articles don't count.

    The data is a JSONL of {image, text, answer}, where answer may be a list of correct answers.

    Example:

      pad evaluate vqa --model two/ --data questions.jsonl --images val2014/ --out vqa/
    """
    _evaluate("vqa", **questions)


def _evaluate(what: str, *, as_json: bool, prompt: str, **questions: Any) -> None:
    from pad_pipeline.workflows.learning import ask as workflow

    if prompt:
        questions["prompt"] = prompt
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
    out: Annotated[Path, typer.Option(help="Folder for the results of lmms-eval.")],
    tasks: Annotated[
        str, typer.Option(help="Names of lmms-eval's tasks, such as gqa,mme; empty for the paper's.")
    ] = "",
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder with YAML files of tasks of your own.", exists=True, file_okay=False)
    ] = None,
    processes: Annotated[int, typer.Option(help="Number of processes, one for each GPU.", min=1)] = 1,
    python: Annotated[str, typer.Option(help="Python of an environment with lmms-eval; by default pad's own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run the standard benchmarks (GQA, ScienceQA, VizWiz, OK-VQA, MMMU, MM-Vet, MMBench, MME) with lmms-eval.

    First, the model's Hugging Face folder is checked: a processor that crops, where the training padded, lowers the
    scores silently. lmms-eval runs in bfloat16 on a GPU, or in float32 on the CPU. Questions that it fails to answer
    are an error. Without --tasks, nothing runs if --out holds results already; they are printed.

    Examples:

      pad evaluate lmms --model two/ --tasks gqa,mme --out lmms/

      pad evaluate lmms --model two/ --tasks mine --tasks-folder tasks/ --python lmms-env/bin/python --out lmms/
    """
    from pad_pipeline.workflows.learning import lmms as workflow

    for problem in workflow.check_export(model):
        note(f"warning: {problem}")
    found = workflow.evaluate(model, out, tasks, tasks_folder, processes, python)
    _print_scores("lmms-eval", found, as_json)
