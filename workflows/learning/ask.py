"""`pad evaluate`: a trained model is asked, its answers are kept, and scored; what was answered is not asked again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pad_pipeline.console import errors
from pad_pipeline.errors import UserError
from pad_pipeline.evaluation.answers import exact_match
from pad_pipeline.evaluation.boxes import read_expressions, score_boxes
from pad_pipeline.evaluation.captions import java_scores, score_captions
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.sources.base import path_problem
from pad_pipeline.training.chat import Chat, llava_folder, load_processor, shown_fit
from pad_pipeline.weights import file_sha256

WINDOW = 8
"""Batches that are read ahead: of so many questions those whose prompts are of one length go together."""
THREADS = 4
ASKED, ANSWERS, SCORES = "model.json", "answers.jsonl", "scores.json"
REFER = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""LLaVA-1.5's prompt; `prompt` may be another, with `{}` where the phrase goes."""
DESCRIBE = "Provide a one-sentence caption for the provided image."


class Question(NamedTuple):
    """What is asked about an image."""

    image: str
    text: str


# ---------------------------------------------------------------- asking


def ask(model: Path, images: Path, asked: Sequence[Question], out: Path, batch: int, max_tokens: int) -> list[str]:
    """The answers, from `answers.jsonl` as far as they stand there, the rest from the model.

    Raises:
        UserError: `out` holds answers to other questions, an image or the model can't be used, or nothing can be
            written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, model)
        known = _known(out / ANSWERS, asked)
        if len(known) == len(asked):
            return known
        chat = Chat(model)
        columns = [TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), TextColumn("answers")]
        with (
            (out / ANSWERS).open("a", encoding="utf-8") as file,
            Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as progress,
        ):
            task = progress.add_task("evaluate", total=len(asked), completed=len(known))
            for group, put in _ahead(chat, images, asked[len(known) :], WINDOW * batch):
                said = chat.answers(put, max_tokens, batch)
                for one, answer in zip(group, said, strict=True):
                    file.write(json.dumps({"image": one.image, "question": one.text, "answer": answer}) + "\n")
                file.flush()
                known += said
                progress.update(task, completed=len(known))
    except torch.OutOfMemoryError as error:
        rule = "the GPU has not enough memory for so many questions at a time"
        raise UserError("batch", batch, rule, "lower it; the answers stay the same") from error
    except OSError as error:
        raise UserError("out", out, f"it can't be used ({error.strerror or error})", "choose another folder") from error
    return known


def _ahead(
    chat: Chat, images: Path, asked: Sequence[Question], window: int
) -> Iterator[tuple[Sequence[Question], list[dict[str, torch.Tensor]]]]:
    """Questions, a window at a time, and what the model is given; a window is read while the one before is answered."""

    def put(one: Question) -> dict[str, torch.Tensor]:
        return chat.put(_image(images, one.image), one.text)

    with ThreadPoolExecutor(THREADS) as threads:
        windows = [asked[start : start + window] for start in range(0, len(asked), window)]
        begun = [threads.submit(put, one) for one in windows[0]] if windows else []
        for group, after in zip(windows, [*windows[1:], []], strict=True):
            ready, begun = begun, [threads.submit(put, one) for one in after]
            try:
                yield group, [one.result() for one in ready]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _claim(out: Path, model: Path) -> None:
    """The folder is for this model's answers alone, as it is now: a training into the same folder makes another, and so
    does another processor or chat template."""
    folder = llava_folder(model)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    mine = {"files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}
    path = out / ASKED
    if not path.exists():
        if (out / ANSWERS).exists():
            raise UserError("out", out, f"it holds answers, and no {ASKED} that says whose", "name a new folder")
        path.write_text(json.dumps(mine, indent=1) + "\n", "utf-8")
        return
    try:
        theirs = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError("out", path, "it can't be read", "name a new folder") from error
    if theirs != mine:
        raise UserError("out", out, "it holds the answers of another model", "name a new folder")


def _known(path: Path, asked: Sequence[Question]) -> list[str]:
    """Answers of an earlier call, which may have asked more; a line that it did not finish is cut off."""
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
    if problem := path_problem(name):
        raise UserError("data", name, problem, "mend the data")
    path = next((path for path in (images / name, images / Path(name).name) if path.is_file()), images / name)
    try:
        return decode(path.read_bytes(), DecodeSettings())[0]
    except OSError as error:
        rule = f"it can't be read ({error.strerror})"
        raise UserError("images", path, rule, "give the folder that the images lie in") from error
    except BadImage as error:
        raise UserError("images", path, str(error), "mend or remove the image") from error


# ---------------------------------------------------------------- the three


def evaluate_rec(
    model: Path, data: Path, images: Path, out: Path, prompt: str = REFER, limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Referring expressions, in both frames.

    Raises:
        UserError: see `ask`; the data can't be read, or the prompt has no place for the phrase.
    """
    if prompt.count("{}") != 1:
        raise UserError("prompt", prompt, "it should hold {} once, where the phrase goes", "put it there")
    expressions = read_expressions(data)[:limit]
    if not expressions:
        raise UserError("data", data, "it holds no expression", "give a file of RefCOCO, RefCOCO+ or RefCOCOg")
    asked = [Question(one.image, prompt.replace("{}", one.text)) for one in expressions]
    said = ask(model, images, asked, out, batch, 64)
    if (fit := shown_fit(load_processor(llava_folder(model)))) != "pad":
        note = f"note: this model is shown images with {fit!r}, so the frame `padded` is not its own."
        errors.print(note, style="yellow", highlight=False, soft_wrap=True)
    return _kept(out, "rec", score_boxes(expressions, said))


def evaluate_captions(
    model: Path, data: Path, images: Path, out: Path, prompt: str = DESCRIBE, limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Captions against COCO's or a LLaVA JSON's.

    Raises:
        UserError: see `ask`; the data can't be read.
    """
    references = read_references(data)
    names = list(references)[:limit]
    said = ask(model, images, [Question(name, prompt) for name in names], out, batch, 128)
    true = [references[name] for name in names]
    found: dict[str, Any] = {"captions": len(said)} | score_captions(said, true)
    return _kept(out, "captions", found | java_scores(said, true, lambda text: errors.print(text, markup=False)))


def evaluate_vqa(
    model: Path, data: Path, images: Path, out: Path, prompt: str = "{}", limit: int | None = None, batch: int = 16
) -> dict[str, Any]:
    """Questions of a LLaVA-style JSONL, `{image, text, answer}`; `answer` may be a list.

    Raises:
        UserError: see `ask`; the data can't be read.
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
    said = ask(model, images, asked, out, batch, 64)
    return _kept(out, "vqa", {"questions": len(said), "exact_match": exact_match(said, truth)})


EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "rec": evaluate_rec,
    "captions": evaluate_captions,
    "vqa": evaluate_vqa,
}


def read_references(path: Path) -> dict[str, list[str]]:
    """Captions by image, of COCO's captions JSON or of a LLaVA JSON.

    Raises:
        UserError: it is neither.
    """
    from pad_pipeline.sources.base import read_json
    from pad_pipeline.sources.llava import caption_of, read_conversations

    data = read_json("data", path)
    found: dict[str, list[str]] = {}
    try:
        if isinstance(data, dict):
            names = {image["id"]: str(image["file_name"]) for image in data["images"]}
            for annotation in data["annotations"]:
                found.setdefault(names[annotation["image_id"]], []).append(str(annotation["caption"]))
        else:
            for record in data:
                caption = caption_of(read_conversations(record.get("conversations") or []))
                if record.get("image") and caption:
                    found.setdefault(str(record["image"]), []).append(caption)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rule = f"it holds no captions that can be read ({type(error).__name__}: {error})"
        raise UserError("data", path, rule, "give COCO's captions JSON or a LLaVA JSON") from error
    if not found:
        raise UserError("data", path, "no image in it has a caption", "give COCO's captions JSON or a LLaVA JSON")
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        rule = f"line {number} has no text under {name!r}"
        raise UserError("data", path, rule, "give a JSONL of {image, text, answer}")
    return value


def _true_answers(value: Any, path: Path, number: int) -> list[str]:
    found = [value] if isinstance(value, str | int | float) else value
    if not isinstance(found, list) or not found:
        raise UserError("data", path, f"line {number} has no answer", "give a JSONL of {image, text, answer}")
    return [str(one) for one in found]


def _kept(out: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    (out / SCORES).write_text(json.dumps({name: found}, indent=1) + "\n", "utf-8")
    return found
