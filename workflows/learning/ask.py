"""Ask a trained model the questions of `pad evaluate`, and score its answers. Answers of an earlier call are reused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from pad_pipeline.console import note, progress
from pad_pipeline.errors import UserError
from pad_pipeline.evaluation.answers import exact_match
from pad_pipeline.evaluation.boxes import read_expressions, score_boxes
from pad_pipeline.evaluation.captions import java_scores, score_captions
from pad_pipeline.facts import read_facts
from pad_pipeline.sources.base import path_problem, read_json
from pad_pipeline.sources.conversations import caption_of, read_conversations
from pad_pipeline.storage import atomic_write_text, write_error
from pad_pipeline.training.chat import Chat, llava_folder, load_processor, processor_fit
from pad_pipeline.weights import file_sha256
from pad_pipeline.workflows.learning.chat import read_image

_WINDOW = 8
"""The number of batches in a window: among its questions, the model answers those of the same length together."""
_THREADS = 4
"""The number of threads that read images."""
_MODEL, _ANSWERS, _SCORES = "model.json", "answers.jsonl", "scores.json"
"""The files in the output folder: hashes of the model's files, the answers, and the scores."""
_REFER = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""LLaVA-1.5's prompt for a referring expression, which replaces `{}`."""
_DESCRIBE = "Provide a one-sentence caption for the provided image."


class Question(NamedTuple):
    """A question about one image."""

    image: str
    """Path of the image within the folder of images."""
    text: str


def ask(model: Path, images: Path, asked: Sequence[Question], out: Path, batch: int, max_tokens: int) -> list[str]:
    """Return the answers to the questions `asked`. The model is only asked those that `answers.jsonl` does not answer.

    `out` gets `answers.jsonl`, and `model.json` with hashes of the model's files. The model answers up to `batch`
    questions at a time, each with up to `max_tokens` tokens.

    Raises:
        UserError: `out` holds answers to other questions or of another model, an image or the model can't be used, or
            `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim_for_model(out, model)
        known = _earlier_answers(out / _ANSWERS, asked)
        if len(known) == len(asked):
            return known
        chat = Chat(model)
        with (
            (out / _ANSWERS).open("a", encoding="utf-8") as file,
            progress("evaluate", len(asked), "answers") as update,
        ):
            for group, inputs in _windows(chat, images, asked[len(known) :], _WINDOW * batch):
                answers = chat.answers(inputs, max_tokens, batch)
                for one, answer in zip(group, answers, strict=True):
                    file.write(json.dumps({"image": one.image, "question": one.text, "answer": answer}) + "\n")
                file.flush()
                known += answers
                update(completed=len(known))
    except torch.OutOfMemoryError as error:
        rule = "the GPU has not enough memory for so many questions at a time"
        raise UserError("batch", batch, rule, "lower it; the answers stay the same") from error
    except OSError as error:
        raise write_error(out, error) from error
    return known


def _windows(
    chat: Chat, images: Path, asked: Sequence[Question], size: int
) -> Iterator[tuple[Sequence[Question], list[dict[str, torch.Tensor]]]]:
    """Yield the questions in windows of `size`, with the model's inputs. Threads read the images of the next window."""

    def prepare(question: Question) -> dict[str, torch.Tensor]:
        return chat.prepare(_image(images, question.image), question.text)

    with ThreadPoolExecutor(_THREADS) as threads:
        ahead = [threads.submit(prepare, question) for question in asked[:size]]
        for start in range(0, len(asked), size):
            ready = ahead
            ahead = [threads.submit(prepare, question) for question in asked[start + size : start + 2 * size]]
            try:
                yield asked[start : start + size], [future.result() for future in ready]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _claim_for_model(out: Path, model: Path) -> None:
    """Check that the answers in `out` are of this model, by the hashes of the model's files. Write the hashes into a
    new `out`."""
    folder = llava_folder(model)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {"files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}
    earlier = read_facts(out / _MODEL)
    if earlier is None:
        if (out / _ANSWERS).exists():
            raise UserError("out", out, f"it holds answers, but no {_MODEL}", "name another `out`")
        atomic_write_text(out / _MODEL, json.dumps(facts, indent=1) + "\n")
    elif earlier != facts:
        raise UserError("out", out, "it holds the answers of another model", "name another `out`")


def _earlier_answers(path: Path, asked: Sequence[Question]) -> list[str]:
    """Read the answers of an earlier call to the first of the questions `asked`. Remove an incomplete last line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    answers = []
    for number, line in enumerate(complete.splitlines()[: len(asked)]):
        try:
            entry = json.loads(line)
            if (entry["image"], entry["question"]) != asked[number] or not isinstance(entry["answer"], str):
                raise ValueError
            answers.append(entry["answer"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            rule = f"line {number + 1} answers another question than this data asks"
            raise UserError("out", path, rule, "name another `out`") from error
    return answers


def _image(images: Path, name: str) -> Image.Image:
    """Decode the image `name` within the folder `images`, or the file of that name directly in the folder."""
    if problem := path_problem(name):
        raise UserError("data", name, problem, "correct the data")
    path = next((path for path in (images / name, images / Path(name).name) if path.is_file()), images / name)
    return read_image("images", path, "give the folder of the images")


Entry = tuple[str, str | None, Any]
"""An image, the text that replaces `{}` in the prompt (None for a prompt without `{}`), and the right answer."""


def _evaluate(
    name: str, default: str, max_tokens: int, read: Callable[[Path], list[Entry]], score: Callable[..., dict[str, Any]],
    model: Path, data: Path, images: Path, out: Path, prompt: str = "", limit: int | None = None, batch: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """Ask a model about the entries that `read` returns for `data`. Write and return the scores of its answers."""
    prompt = prompt or default
    if "{}" in default and prompt.count("{}") != 1:
        replaced = "phrase" if name == "rec" else "question"
        raise UserError("prompt", prompt, f"it should contain {{}} once, for the {replaced}", "add it")
    entries = read(data)[:limit]
    asked = [Question(image, prompt if text is None else prompt.replace("{}", text)) for image, text, _ in entries]
    answers = ask(model, images, asked, out, batch, max_tokens)
    if name == "rec" and (fit := processor_fit(load_processor(llava_folder(model)))) != "pad":
        note(f"note: this model's images have the fit {fit!r}, so ignore the scores of the frame `padded`.", "yellow")
    scores = score(answers, [truth for _, _, truth in entries])
    (out / _SCORES).write_text(json.dumps({name: scores}, indent=1) + "\n", "utf-8")
    return scores


def _expressions(path: Path) -> list[Entry]:
    expressions = read_expressions(path)
    if not expressions:
        raise UserError("data", path, "it holds no expression", "give a file of RefCOCO, RefCOCO+ or RefCOCOg")
    return [(one.image, one.text, one) for one in expressions]


def _references(path: Path) -> list[Entry]:
    """Read the captions of each image in COCO's captions JSON or a LLaVA JSON."""
    data, captions = read_json("data", path), dict[str, list[str]]()
    remedy = "give COCO's captions JSON or a LLaVA JSON"
    try:
        if isinstance(data, dict):
            names = {image["id"]: str(image["file_name"]) for image in data["images"]}
            for annotation in data["annotations"]:
                captions.setdefault(names[annotation["image_id"]], []).append(str(annotation["caption"]))
        else:
            for record in data:
                caption = caption_of(read_conversations(record.get("conversations") or []))
                if record.get("image") and caption:
                    captions.setdefault(str(record["image"]), []).append(caption)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rule = f"its captions can't be read ({type(error).__name__}: {error})"
        raise UserError("data", path, rule, remedy) from error
    if not captions:
        raise UserError("data", path, "no image in it has a caption", remedy)
    return [(name, None, of_image) for name, of_image in captions.items()]


def _questions(path: Path) -> list[Entry]:
    """Read a JSONL of `{image, text, answer}` as LLaVA's; `answer` may be a list of right answers."""
    entries: list[Entry] = []
    remedy = "give a JSONL of {image, text, answer}"
    try:
        for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
            if not line.strip():
                continue
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("it should be an object")
            for name in ("image", "text"):
                if not isinstance(entry.get(name), str) or not entry[name]:
                    raise UserError("data", path, f"line {number} has no text under {name!r}", remedy)
            answers = entry.get("answer")
            answers = [answers] if isinstance(answers, str | int | float) else answers
            if not isinstance(answers, list) or not answers:
                raise UserError("data", path, f"line {number} has no answer", remedy)
            entries.append((entry["image"], entry["text"], [str(one) for one in answers]))
    except OSError as error:
        raise UserError("data", path, f"it can't be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError("data", path, f"it is no JSONL ({error})", remedy) from error
    if not entries:
        raise UserError("data", path, "it holds no question", remedy)
    return entries


def _caption_scores(answers: list[str], true: list[list[str]]) -> dict[str, Any]:
    return {"captions": len(answers)} | score_captions(answers, true) | java_scores(answers, true, note)


EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "rec": partial(_evaluate, "rec", _REFER, 64, _expressions, lambda answers, true: score_boxes(true, answers)),
    "captions": partial(_evaluate, "captions", _DESCRIBE, 128, _references, _caption_scores),
    "vqa": partial(
        _evaluate, "vqa", "{}", 64, _questions,
        lambda answers, true: {"questions": len(answers), "exact_match": exact_match(answers, true)},
    ),
}  # fmt: skip
"""The evaluations. `rec` scores the boxes of referring expressions, as shares of the image and of the padded square;
`captions` scores captions; `vqa` counts answers that match exactly.

Each is called with `model`, `data`, `images`, `out`, `prompt` (empty for the default), `limit` and `batch`, see `ask`.
"""
