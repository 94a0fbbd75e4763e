"""Score an exported model on the standard benchmarks with lmms-eval, for `pad evaluate lmms`."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pad_pipeline.errors import UserError
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.pretrained import read_config
from pad_pipeline.training.chat import KINDS, llava_folder, load_processor, processor_fit
from pad_pipeline.training.export import ADAPTER, tokenize_chat
from pad_pipeline.training.template import IMAGE_MARK

TASKS = (
    "gqa,scienceqa_img,vizwiz_vqa_val,ok_vqa,mmmu_val,mme,mmbench_en_dev,mmvet,"
    "refcoco_bbox_rec,refcoco+_bbox_rec,refcocog_bbox_rec,coco2017_cap_val"
)
"""The names in lmms-eval of the paper's benchmarks."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_FAILURE = re.compile(r"Error during evaluation: (.+?)\.? Please set|((?:\w+Error|\w+Exception|No module named)\b.*)")
"""The reason of a failure in a line of lmms-eval's output."""
_LAUNCHER = re.compile("CalledProcessError|ChildFailedError")
"""The errors of the programs that start lmms-eval. They do not say why it failed."""
_UNANSWERED = re.compile(r"(?:.*\bError )?(.+) in generating$")
"""What lmms-eval prints about a question that its model could not answer; it takes "" for the answer and goes on. Of an
error with several lines, this is the last one."""


def check_export(model: Path) -> list[str]:
    """List the problems of an exported model that would make its scores in lmms-eval wrong.

    Raises:
        UserError: the folder can't be loaded.
    """
    folder = llava_folder(model)
    processor = load_processor(folder)
    problems = []
    if (folder / ADAPTER).is_dir():
        problems.append("its adapters are not merged: lmms-eval would score the LLM without them (lora.merge = true)")
    if read_config("model", folder, set(KINDS))["model_type"] != "llava":
        problems.append("it is no stock LLaVA (its projector or its registers): lmms-eval's llava_hf can't load it")
    if not processor.chat_template:
        problems.append("it has no chat template: lmms-eval would use Vicuna's")
    elif not _same_prompt(processor):
        problems.append("lmms-eval, which tokenizes the rendered chat template, would make other tokens of a question")
    elif (end := _answer_end(processor)) not in ("", eos := processor.tokenizer.eos_token):
        problems.append(f"its answers ended with {end} in training, and lmms-eval would end them at {eos} alone")
    found = processor_fit(processor)
    facts = folder.parent / "training.json"
    if facts.is_file():
        try:
            fit = json.loads(facts.read_text())["view"]["fit"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError("model", facts, "it can't be read", "restore it") from error
        if found != fit:
            problems.append(f"it was trained with fit {fit!r}, and its processor has {found!r}")
    elif found != "pad":
        problems.append("its processor does not pad, unlike LLaVA-1.5's")
    return problems


def _same_prompt(processor: Any) -> bool:
    """Return whether one call of the processor makes the same tokens of a question as lmms-eval, which renders the chat
    template and then tokenizes the text. The content of its message is a list of parts; in older versions, a text."""
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    forms = [[{"role": "user", "content": content}] for content in (parts, f"{IMAGE_MARK}\nWhat is this?")]
    try:
        once = tokenize_chat(processor, forms[0], add_generation_prompt=True)
        texts = (processor.apply_chat_template(form, add_generation_prompt=True) for form in forms)
        return all(processor.tokenizer(text)["input_ids"] == once for text in texts)
    except Exception:  # a chat template is a program and can raise anything
        return False


def _answer_end(processor: Any) -> str:
    """Return the special token that ends an answer in the chat template; "" if there is none."""
    roles = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    special = {str(token) for token in processor.tokenizer.added_tokens_decoder.values()}
    try:
        after = processor.apply_chat_template(roles).rpartition("A dog.")[2]
        return next((token for token in processor.tokenizer.tokenize(after) if token in special), "")
    except Exception:  # a chat template is a program and can raise anything
        return ""


def evaluate(
    model: Path, out: Path, tasks: str = "", tasks_folder: Path | None = None, processes: int = 1, python: str = ""
) -> dict[str, float]:
    """Score a model with lmms-eval, and return `read_results`. Only results that `out` holds are returned if there are
    some and `tasks` is empty.

    Args:
        model: the output folder of `pad train`, or another LLaVA folder.
        out: the folder for the results.
        tasks: names of tasks, separated by commas; empty for `TASKS`.
        tasks_folder: folder with YAML files of other tasks than lmms-eval's own.
        processes: the number of processes, one for each GPU.
        python: the Python that has lmms-eval; empty for this one.

    Raises:
        UserError: lmms-eval fails, leaves out questions, or writes no results of this model.
    """
    if (found := read_results(out, model)) and not tasks:
        return found
    before = _results(out)
    code, reason, unanswered = _run(model, tasks or TASKS, out, tasks_folder, processes, python)
    new = sorted(_results(out) - before)
    if code or not new:  # lmms-eval also ends with exit code 0 after an error
        rule = f"lmms-eval ended with exit code {code}" if code else "lmms-eval wrote no results"
        raise UserError("tasks", tasks or TASKS, f"{rule} ({reason or 'without an error'})", "see its output above")
    if unanswered:
        rule = f"its model failed on {len(unanswered)} questions, which count as wrong ({unanswered[0]})"
        raise UserError("out", new[-1], rule, "remove this file, see the output above, and run the evaluation again")
    if not (found := read_results(out, model)):
        raise UserError("out", new[-1], "it holds no score", "name other `tasks`")
    return found


def _run(
    model: Path, tasks: str, out: Path, tasks_folder: Path | None, processes: int, python: str
) -> tuple[int, str, list[str]]:
    """Run lmms-eval, with its output on standard error. Return its exit code, the last error in its output, and the
    error of each question that it could not answer."""
    words = [python or sys.executable, *_command(model, tasks, out, tasks_folder, processes)]
    if not python and not installed("lmms_eval"):
        remedy = f"{OPTIONAL['lmms_eval'].install}, or name the `python` of another environment"
        raise UserError("python", sys.executable, not_installed("lmms_eval"), remedy)
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
    except OSError as error:
        raise UserError("python", python, f"it can't be started ({error.strerror})", "name a Python") from error
    reason, unanswered = "", []
    assert process.stdout
    with process, io.TextIOWrapper(process.stdout, "utf-8", "replace", newline="") as output:
        for line in output:  # a progress bar ends each of its lines with a carriage return
            sys.stderr.write(line)
            sys.stderr.flush()
            line = _COLOR.sub("", line).strip()
            if question := _UNANSWERED.search(line):
                unanswered.append(question[1])
            elif (match := _FAILURE.search(line)) and not _LAUNCHER.search(line):
                reason = match[1] or match[2]
    return process.returncode, reason[:300], unanswered


def _command(model: Path, tasks: str, out: Path, tasks_folder: Path | None, processes: int) -> list[str]:
    """Return the arguments with which Python runs lmms-eval.

    Raises:
        UserError: a path or the number of processes does not suit lmms-eval.
    """
    folder = llava_folder(model)
    for field, path in (("model", folder), ("out", out)):
        if "," in str(path):
            raise UserError(field, path, "lmms-eval ends a path at a comma", "rename it")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes > max(gpus, 1):
        rule = f"each process needs a GPU of its own, and there are {gpus} GPUs"
        raise UserError("processes", processes, rule, "lower it")
    where = f"device={'cuda' if gpus else 'cpu'},device_map={'cuda' if gpus else 'cpu'}"
    # With several processes, lmms-eval gives each its GPU, and divides the questions only if no device is named.
    chosen = ["dtype=bfloat16" if gpus else "dtype=float32", *([where] if processes == 1 else [])]
    launch = ["-m", "accelerate.commands.launch", f"--num_processes={processes}"] if processes > 1 else []
    own = ["--include_path", str(tasks_folder)] if tasks_folder else []
    return [
        *launch, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", ",".join([f"pretrained={folder}", *chosen]),
        "--tasks", tasks, *own, "--batch_size", "1", "--log_samples", "--output_path", str(out),
    ]  # fmt: skip


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*results.json"))


def read_results(out: Path, model: Path) -> dict[str, float]:
    """Return the newest value of each metric that lmms-eval wrote below `out`, without standard errors. The keys are
    `TASK METRIC`.

    Raises:
        UserError: results can't be read, or are of another model.
    """
    values: dict[str, float] = {}
    for path in sorted(_results(out), key=lambda path: path.stat().st_mtime):
        try:
            whole = json.loads(path.read_text("utf-8"))
            asked = str(whole.get("config", {}).get("model_args", ""))
            results: dict[str, dict[str, Any]] = whole["results"]
            new = {
                f"{task} {metric.partition(',')[0]}": float(value)
                for task, metrics in sorted(results.items())
                for metric, value in metrics.items()
                if isinstance(value, int | float) and "_stderr" not in metric
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            rule = f"it holds no results of lmms-eval ({type(error).__name__}: {error})"
            raise UserError("out", path, rule, "run the evaluation again") from error
        named = [part.removeprefix("pretrained=") for part in asked.split(",") if part.startswith("pretrained=")]
        if [Path(name).resolve() for name in named] != [llava_folder(model).resolve()]:
            rule = f"its results are of another model ({asked or 'an unknown one'})"
            raise UserError("out", path, rule, "name another `out`")
        values |= new
    return values
