"""`pad evaluate lmms` ends with scores of the model, or with an error that says why there are none.

One test runs lmms-eval, from this environment or from the Python that `LMMS_PYTHON` names: lmms-eval can't be installed
next to the pins of constraints.txt. The others run a program in its place that fails in the ways in which lmms-eval was
seen to fail: it catches its errors, and ends with exit code 0.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pad_pipeline.packages import installed
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.export import export_llava
from pad_pipeline.workflows.learning.lmms import _command, check_export
from tests.conftest import ROOT
from tests.training.trained_models import build, view_for

pytestmark = pytest.mark.usefixtures("no_gpu")
Run = Callable[..., SimpleNamespace]
LMMS_PYTHON = os.environ.get("LMMS_PYTHON") or (sys.executable if installed("lmms_eval") else "")
ANSWER_TOKENS = 6


@pytest.fixture(scope="module")
def model(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    built = build(parts)
    export_llava(built, view_for(built), folder / "hf")
    return folder


@pytest.fixture
def stand_in(pad: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `pad evaluate lmms` with a package `lmms_eval` that has the given code, in which `args` are its options."""
    (tmp_path / "lmms_eval").mkdir()
    (tmp_path / "lmms_eval/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.syspath_prepend(tmp_path)
    start = (
        "import json, sys; from pathlib import Path\n"
        "args = dict(zip(sys.argv, sys.argv[1:])); out = Path(args['--output_path'])\n"
        "def write(model_args, results):\n"
        "    out.mkdir(parents=True, exist_ok=True)\n"
        "    (out / f'{len(list(out.iterdir()))}_results.json').write_text(\n"
        "        json.dumps({'config': {'model_args': model_args}, 'results': results}))\n"
    )

    def run(code: str, *options: object) -> SimpleNamespace:
        (tmp_path / "lmms_eval/__main__.py").write_text(start + code)
        return pad("evaluate", "lmms", "--model", model, "--tasks", "two", "--out", tmp_path / "scores", *options)

    return run


def test_no_results_are_an_error(stand_in: Run, model: Path) -> None:
    """lmms-eval catches its errors and ends with 0. Catches a `pad` that does the same, shows an earlier run's results
    in their place, or doesn't say why."""
    done = stand_in("write(args['--model_args'], {'one': {'acc,none': 1.0}})", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"one acc": 1.0})
    done = stand_in("print('all went well')")
    assert done.code == 2 and "--tasks = two: lmms-eval wrote no results (without an error)" in done.err
    told = r"'\x1b[31mError during evaluation: no device map. Please set `--verbosity=DEBUG` to get more.\x1b[0m'"
    done = stand_in(f"print({told})")
    assert done.code == 2 and "wrote no results (no device map); see its output above" in done.err
    done = stand_in("raise ValueError('no such task')")
    assert done.code == 2 and "exit code 1 (ValueError: no such task)" in done.err


def test_results_of_another_model_are_an_error(stand_in: Run) -> None:
    """Scores of one model in the table of another are worse than none."""
    done = stand_in("write('pretrained=/another/model', {'two': {'acc,none': 1.0}})")
    assert done.code == 2 and "its results are of another model" in done.err
    assert not done.out


def test_results_without_a_score_are_an_error(stand_in: Run) -> None:
    """A task whose judge needs a key writes results of texts alone."""
    done = stand_in("write(args['--model_args'], {'two': {'alias': 'two', 'gpt_score,none': 'N/A'}})")
    assert done.code == 2 and "it holds no score" in done.err


def test_questions_without_an_answer_are_an_error(stand_in: Run) -> None:
    """lmms-eval prints the model's exception, and scores an empty answer. Catches a score that is low because there was
    too little memory."""
    code = "write(args['--model_args'], {'two': {'acc,none': 0.5}})\nprint('Error out of memory in generating\\n' * 2)"
    done = stand_in(code)
    assert done.code == 2 and "its model failed on 2 questions, which count as wrong (out of memory)" in done.err


def test_lmms_eval_gets_a_device_that_this_machine_has(
    stand_in: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a device map, lmms-eval 0.7.3 fails under transformers 5; its default device is a GPU. It divides the
    questions among processes only if no device is named."""
    done = stand_in("print(sys.argv[1:], file=sys.stderr)\nwrite(args['--model_args'], {'two': {'acc,none': 1.0}})")
    assert done.code == 0 and f"pretrained={model / 'hf'},dtype=float32,device=cpu,device_map=cpu'" in done.err
    done = stand_in("", "--processes", 2)
    assert done.code == 2 and "--processes = 2: each process needs a GPU of its own" in done.err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    one, two = (" ".join(_command(model, "two", Path("scores"), None, processes)) for processes in (1, 2))
    assert f"pretrained={model / 'hf'},dtype=bfloat16,device=cuda,device_map=cuda --tasks two" in one
    assert two.startswith("-m accelerate.commands.launch --num_processes=2 -m lmms_eval")
    assert f"pretrained={model / 'hf'},dtype=bfloat16 --tasks two" in two


def test_a_missing_lmms_eval_is_told(pad: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to install it; `--python` names an environment that has it."""
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setattr("pad_pipeline.workflows.learning.lmms.installed", lambda name: False)
    asked = ["evaluate", "lmms", "--model", model, "--out", tmp_path / "scores"]
    assert "pip install 'pad-pipeline[lmms]', or name the --python" in pad(*asked).err
    assert "it can't be started" in pad(*asked, "--python", tmp_path / "python").err
    assert "No module named lmms_eval" in pad(*asked, "--python", sys.executable).err or installed("lmms_eval")
    comma = tmp_path / "a,b"
    assert "at a comma" in pad(*asked[:-1], comma, "--python", sys.executable).err


def test_an_end_that_lmms_eval_does_not_know_is_told(parts: Path, tmp_path: Path) -> None:
    """It ends answers at the tokenizer's EOS, whatever generation_config.json says: with a base LLM, a model trained on
    `<|im_end|>` would go on talking for both sides."""
    built = build(parts, "qwen2", template="chat")
    export_llava(built, view_for(built), tmp_path / "same")
    assert not check_export(tmp_path / "same")
    built.tokenizer.eos_token = "<|endoftext|>"
    export_llava(built, view_for(built), tmp_path / "base")
    assert check_export(tmp_path / "base") == [
        "its answers ended with <|im_end|> in training, and lmms-eval would end them at <|endoftext|> alone"
    ]


def write_tasks(folder: Path, rows: list[tuple[Image.Image, str, str]]) -> None:
    """Write a task of lmms-eval, `two`, whose questions are in a file beside it; with `broken` the model fails."""
    records = []
    for image, question, answer in rows:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        records.append({"image": {"bytes": stream.getvalue()}, "question": question, "answer": answer})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(records), folder / "questions.parquet")
    (folder / "images.py").write_text(
        "import io\nfrom PIL import Image\n\n\n"
        "def images(question):\n    return [Image.open(io.BytesIO(question['image']['bytes']))]\n"
    )
    for name, more in (("two", ""), ("broken", ", num_beams: 0")):
        (folder / f"{name}.yaml").write_text(f"""\
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder / "questions.parquet"}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function images.images
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: {ANSWER_TOKENS}{more}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")


@pytest.mark.slow
@pytest.mark.skipif(not LMMS_PYTHON, reason="lmms_eval is not installed here, and LMMS_PYTHON names no Python with it")
@pytest.mark.parametrize(("llm", "template"), [("vicuna", "v1"), ("qwen2", "chat")])
def test_lmms_eval_gets_the_answers_of_pad_chat(
    pad: Run, parts: Path, llm: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two questions of a task of our own. Catches a command line that lmms-eval can't run, a prompt or a dtype of
    its own, and an error of lmms-eval, or of the model in it, that ends with exit code 0."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    built = build(parts, llm, template=template)
    words = built.tokenizer.batch_decode([[token] for token in range(len(built.tokenizer))])
    built.llm.generation_config.suppress_tokens = [
        n for n, word in enumerate(words) if not re.fullmatch("[a-z]+", word)
    ]
    export_llava(built, view_for(built), tmp_path / "trained/hf")
    chat = Chat(tmp_path / "trained")
    asked = [(Image.new("RGB", (56, 56), color), f"Is it {color}?") for color in ("red", "blue")]
    answers = [chat.answer(image, question, ANSWER_TOKENS) for image, question in asked]
    assert answers[0] != answers[1], "the model does not see the images"
    write_tasks(tmp_path / "task", [(*asked[0], answers[0]), (*asked[1], "never said")])
    common = ["evaluate", "lmms", "--out", tmp_path / "scores", "--python", LMMS_PYTHON]
    mine = ["--tasks", "two", "--tasks-folder", tmp_path / "task"]
    done = pad(*common, "--model", tmp_path / "trained", *mine, "--json")
    assert (done.code, "warning" in done.err) == (0, False), done.err
    (logged,) = (tmp_path / "scores").rglob("*samples_two.jsonl")
    said = [json.loads(line)["filtered_resps"] for line in logged.read_text().splitlines()]
    assert [str(text).strip() for text in said] == answers
    assert json.loads(done.out) == {"two exact_match": 0.5}
    missing = pad(*common, "--model", tmp_path / "trained", "--tasks", "another")
    assert missing.code == 2 and "lmms-eval wrote no results (Tasks not found: another" in missing.err
    mine[1] = "broken"
    failed = pad(*common, "--model", tmp_path / "trained", *mine)
    assert failed.code == 2 and "its model failed on 2 questions, which count as wrong" in failed.err, failed.err
