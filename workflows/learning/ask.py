"""Ask a trained model the questions of `pad evaluate`, keep its answers, and score them.

A question that was answered in an earlier call is not asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from pad_pipeline.sources.base import path_problem
from pad_pipeline.storage import unwritable, write_whole
from pad_pipeline.training.chat import Chat, llava_folder, load_processor, shown_fit
from pad_pipeline.weights import file_sha256
from pad_pipeline.workflows.learning.chat import read_image

WINDOW = 8
"""Number of batches whose questions are read ahead. The model answers together those whose prompts have one length."""
THREADS = 4
"""Number of threads that read images."""
ASKED, ANSWERS, SCORES = "model.json", "answers.jsonl", "scores.json"
"""Names of the files in the output folder: hashes of the model's files, the answers, and their scores."""
REFER = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""LLaVA-1.5's prompt for a referring expression, with `{}` where the phrase goes."""
DESCRIBE = "Provide a one-sentence caption for the provided image."
"""Prompt for a caption."""


class Question(NamedTuple):
    """A question about one image."""

    image: str
    """Path of the image below the folder of images."""
    text: str


# ---------------------------------------------------------------- asking


def ask(model: Path, images: Path, asked: Sequence[Question], out: Path, batch: int, max_tokens: int) -> list[str]:
    """Return the answers to questions: those that `answers.jsonl` holds already, and the model's to the others.

    Args:
        model: folder of the exported model.
        images: folder of the images.
        asked: the questions.
        out: folder that gets `answers.jsonl`, and `model.json` with hashes of the model's files.
        batch: number of questions at a time.
        max_tokens: number of tokens after which an answer is cut.

    Raises:
        UserError: `out` holds answers to other questions or of another model, an image or the model can't be used, or
            `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, model)
        known = _known(out / ANSWERS, asked)
        if len(known) == len(asked):
            return known
        chat = Chat(model)
        with (
            (out / ANSWERS).open("a", encoding="utf-8") as file,
            progress("evaluate", len(asked), "answers") as update,
        ):
            for group, inputs in _read_ahead(chat, images, asked[len(known) :], WINDOW * batch):
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
        raise unwritable(out, error) from error
    return known


def _read_ahead(
    chat: Chat, images: Path, asked: Sequence[Question], window: int
) -> Iterator[tuple[Sequence[Question], list[dict[str, torch.Tensor]]]]:
    """Yield the questions in windows of `window`, with the model's inputs for them.

    A window's images are read while the model answers the window before it.
    """

    def prepare(one: Question) -> dict[str, torch.Tensor]:
        return chat.prepare(_image(images, one.image), one.text)

    with ThreadPoolExecutor(THREADS) as threads:
        windows = [asked[start : start + window] for start in range(0, len(asked), window)]
        begun = [threads.submit(prepare, one) for one in windows[0]] if windows else []
        for group, after in zip(windows, [*windows[1:], []], strict=True):
            ready, begun = begun, [threads.submit(prepare, one) for one in after]
            try:
                yield group, [one.result() for one in ready]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _claim(out: Path, model: Path) -> None:
    """Reserve `out` for the answers of this model, by the hashes of all its files.

    A model whose weights, processor or chat template changed since counts as another one.

    Raises:
        UserError: `out` holds the answers of another model, or of an unknown one.
    """
    folder = llava_folder(model)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {"files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}
    earlier = read_facts(out / ASKED)
    if earlier is None:
        if (out / ANSWERS).exists():
            raise UserError("out", out, f"it holds answers, and no {ASKED} that says whose", "name another `out`")
        write_whole(out / ASKED, json.dumps(facts, indent=1) + "\n")
    elif earlier != facts:
        raise UserError("out", out, "it holds the answers of another model", "name another `out`")


def _known(path: Path, asked: Sequence[Question]) -> list[str]:
    """Read the answers of an earlier call, which may have had more questions, and cut off a line that is not whole.

    Raises:
        UserError: a line answers another question than `asked` has in its place.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    known = []
    for number, line in enumerate(whole.splitlines()[: len(asked)]):
        try:
            entry = json.loads(line)
            same = (entry["image"], entry["question"]) == asked[number]
            answer = entry["answer"]
        except (ValueError, KeyError, TypeError, RecursionError):
            same, answer = False, ""
        if not same or not isinstance(answer, str):
            rule = f"line {number + 1} answers another question than this data asks"
            raise UserError("out", path, rule, "name a new folder")
        known.append(answer)
    return known


def _image(images: Path, name: str) -> Image.Image:
    """Decode image `name` below folder `images`, or the file of that name directly in the folder.

    Raises:
        UserError: the image is missing or can't be used.
    """
    if problem := path_problem(name):
        raise UserError("data", name, problem, "mend the data")
    path = next((path for path in (images / name, images / Path(name).name) if path.is_file()), images / name)
    return read_image("images", path, "give the folder that the images lie in")


# ---------------------------------------------------------------- the three evaluations


def evaluate_rec(
    model: Path, data: Path, images: Path, out: Path, prompt: str = REFER, limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a model's boxes for referring expressions, as shares of the image and of the padded square.

    Raises:
        UserError: see `ask`; or the data can't be read, or the prompt has no place for the phrase.
    """
    if prompt.count("{}") != 1:
        raise UserError("prompt", prompt, "it should hold {} once, where the phrase goes", "put it there")
    expressions = read_expressions(data)[:limit]
    if not expressions:
        raise UserError("data", data, "it holds no expression", "give a file of RefCOCO, RefCOCO+ or RefCOCOg")
    asked = [Question(one.image, prompt.replace("{}", one.text)) for one in expressions]
    answers = ask(model, images, asked, out, batch, 64)
    if (fit := shown_fit(load_processor(llava_folder(model)))) != "pad":
        note(f"note: this model is shown images with {fit!r}, so the frame `padded` does not apply to it.", "yellow")
    return _kept(out, "rec", score_boxes(expressions, answers))


def evaluate_captions(
    model: Path, data: Path, images: Path, out: Path, prompt: str = DESCRIBE, limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a model's captions against those of COCO's captions JSON or of a LLaVA JSON.

    Raises:
        UserError: see `ask`; or the data can't be read.
    """
    references = read_references(data)
    names = list(references)[:limit]
    answers = ask(model, images, [Question(name, prompt) for name in names], out, batch, 128)
    true = [references[name] for name in names]
    scores: dict[str, Any] = {"captions": len(answers)} | score_captions(answers, true)
    return _kept(out, "captions", scores | java_scores(answers, true, note))


def evaluate_vqa(
    model: Path, data: Path, images: Path, out: Path, prompt: str = "{}", limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a model's answers to the questions of a LLaVA-style JSONL, by exact match.

    Each line is `{image, text, answer}`, where `answer` may be a list of correct answers.

    Raises:
        UserError: see `ask`; or the data can't be read, or the prompt has no place for the question.
    """
    if prompt.count("{}") != 1:
        raise UserError("prompt", prompt, "it should hold {} once, where the question goes", "put it there")
    lines = list(_lines(data))[:limit]
    asked = [
        Question(_text(line, "image", data, n), prompt.replace("{}", _text(line, "text", data, n))) for n, line in lines
    ]
    truth = [_true_answers(line.get("answer"), data, number) for number, line in lines]
    if not asked:
        raise UserError("data", data, "it holds no question", "give a JSONL of {image, text, answer}")
    answers = ask(model, images, asked, out, batch, 64)
    return _kept(out, "vqa", {"questions": len(answers), "exact_match": exact_match(answers, truth)})


EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "rec": evaluate_rec,
    "captions": evaluate_captions,
    "vqa": evaluate_vqa,
}
"""The evaluations by their names."""


def read_references(path: Path) -> dict[str, list[str]]:
    """Read the captions of each image from COCO's captions JSON or from a LLaVA JSON.

    Raises:
        UserError: the file is neither, or has no caption.
    """
    from pad_pipeline.sources.base import read_json
    from pad_pipeline.sources.llava import caption_of, read_conversations

    data = read_json("data", path)
    captions: dict[str, list[str]] = {}
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
        rule = f"it holds no captions that can be read ({type(error).__name__}: {error})"
        raise UserError("data", path, rule, "give COCO's captions JSON or a LLaVA JSON") from error
    if not captions:
        raise UserError("data", path, "no image in it has a caption", "give COCO's captions JSON or a LLaVA JSON")
    return captions


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL, each with the number of its line, from 1.

    Raises:
        UserError: the file can't be read, or is no JSONL of objects.
    """
    try:
        for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("it should be an object")
                yield number, entry
    except OSError as error:
        raise UserError("data", path, f"it can't be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError("data", path, f"it is no JSONL ({error})", "give one JSON object a line") from error


def _text(entry: dict[str, Any], name: str, path: Path, number: int) -> str:
    """Return the text in field `name` of line `number`.

    Raises:
        UserError: it is missing, empty or no text.
    """
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        rule = f"line {number} has no text under {name!r}"
        raise UserError("data", path, rule, "give a JSONL of {image, text, answer}")
    return value


def _true_answers(value: Any, path: Path, number: int) -> list[str]:
    """Return the correct answers in line `number`, given as one value or as a list.

    Raises:
        UserError: there are none.
    """
    answers = [value] if isinstance(value, str | int | float) else value
    if not isinstance(answers, list) or not answers:
        raise UserError("data", path, f"line {number} has no answer", "give a JSONL of {image, text, answer}")
    return [str(one) for one in answers]


def _kept(out: Path, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Write the scores of evaluation `name` into `scores.json`, and return them."""
    (out / SCORES).write_text(json.dumps({name: scores}, indent=1) + "\n", "utf-8")
    return scores
