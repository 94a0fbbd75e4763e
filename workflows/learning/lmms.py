"""Score an exported model on the standard benchmarks with lmms-eval, for `pad evaluate lmms`."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import read_config
from pad_pipeline.training.chat import KINDS, llava_folder, load_processor, processor_fit
from pad_pipeline.training.export import ADAPTER, tokenize_chat
from pad_pipeline.training.template import IMAGE_MARK

TASKS = (
    "gqa,scienceqa_img,vizwiz_vqa_val,ok_vqa,mmmu_val,mme,mmbench_en_dev,mmvet,"
    "refcoco_bbox_rec,refcoco+_bbox_rec,refcocog_bbox_rec,coco2017_cap_val"
)
"""The names in lmms-eval of the paper's benchmarks."""


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
        problems.append("it is no stock LLaVA (C-Abstractor): lmms-eval's llava_hf can't load it")
    if not processor.chat_template:
        problems.append("it has no chat template: lmms-eval would use Vicuna's")
    elif not _same_prompt(processor):
        problems.append("lmms-eval, which tokenizes the rendered chat template, would make other tokens of a question")
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
    template and then tokenizes the text."""
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    one, two = ([{"role": "user", "content": content}] for content in (parts, f"{IMAGE_MARK}\nWhat is this?"))
    try:
        text = processor.apply_chat_template(two, add_generation_prompt=True)
        return bool(tokenize_chat(processor, one, add_generation_prompt=True) == processor.tokenizer(text)["input_ids"])
    except Exception:  # a chat template is a program and can raise anything
        return False


def run(model: Path, tasks: str, out: Path, processes: int) -> str:
    """Run lmms-eval, and return ""; if it is not installed, return the command to run it elsewhere.

    Raises:
        UserError: lmms-eval fails.
    """
    launch = ["-m", "accelerate.commands.launch", f"--num_processes={processes}", "-m", "lmms_eval"]
    args = f"pretrained={llava_folder(model)},dtype=bfloat16"
    options = ["--model", "llava_hf", "--model_args", args, "--tasks", tasks, "--batch_size", "1", "--log_samples"]
    words = [*launch, *options, "--output_path", str(out)]
    if importlib.util.find_spec("lmms_eval") is None:
        return f"lmms-eval is not installed here. Where it is:\n\n  {shlex.join(['python', *words])}\n"
    if code := subprocess.run([sys.executable, *words]).returncode:
        raise UserError("tasks", tasks, f"lmms-eval ended with exit code {code}", "see its output above")
    return ""


def read_results(out: Path, model: Path) -> dict[str, float]:
    """Return the newest value of each metric that lmms-eval wrote below `out`. The keys are `TASK METRIC`.

    Raises:
        UserError: results can't be read, or are of another model.
    """
    values: dict[str, float] = {}
    for path in sorted(out.rglob("*results.json"), key=lambda path: path.stat().st_mtime):
        try:
            whole = json.loads(path.read_text("utf-8"))
            asked = str(whole.get("config", {}).get("model_args", ""))
            results: dict[str, dict[str, Any]] = whole["results"]
            new = {
                f"{task} {metric.partition(',')[0]}": float(value)
                for task, metrics in sorted(results.items())
                for metric, value in metrics.items()
                if isinstance(value, int | float) and not metric.partition(",")[0].endswith("_stderr")
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
