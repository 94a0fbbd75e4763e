"""Referring expressions: boxes that a model says, against the true ones, in both frames that are in use."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pad_pipeline.errors import UserError
from pad_pipeline.records import Box

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""IoUs of the curve."""
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(rf"[\[(]{','.join([_NUMBER] * 4)}[\])]")


class Expression(NamedTuple):
    """A phrase and the thing that it means."""

    image: str
    """Its file's name, relative to the images' folder."""
    text: str
    box: Box
    """In pixels of the original image."""
    size: tuple[int, int]
    """Width and height of the image."""


def read_expressions(path: Path) -> list[Expression]:
    """Expressions of an MDETR JSON (`finetune_refcoco_val.json`) or an InternVL-style JSONL (`refcoco_val.jsonl`).

    Raises:
        UserError: it is neither, or an entry of it is broken.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("data", path, f"it can't be read ({error})", "check the path") from error
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [_of_line(entry, f"line {number}") for number, entry in enumerate(entries, 1)]
        return _of_mdetr(json.loads(text))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        rule = f"it holds no expressions that can be read ({type(error).__name__}: {error})"
        remedy = "give an MDETR JSON (images with captions, annotations with bbox) or a JSONL of {image, sent, bbox}"
        raise UserError("data", path, rule, remedy) from error


def _of_line(entry: dict[str, Any], where: str) -> Expression:
    """InternVL's: bbox `[x0, y0, x1, y1]` in pixels."""
    return _checked(Expression(
        entry["image"], entry["sent"], tuple(map(float, entry["bbox"])), (entry["width"], entry["height"])  # type: ignore[arg-type]
    ), where)  # fmt: skip


def _of_mdetr(data: dict[str, Any]) -> list[Expression]:
    """MDETR's: an entry of `images` for each expression; bbox `[x, y, width, height]`."""
    boxes: dict[Any, Box] = {}
    for annotation in data["annotations"]:
        x, y, width, height = map(float, annotation["bbox"])
        if annotation["image_id"] in boxes:
            raise ValueError(f"expression {annotation['image_id']} has two boxes, and RefCOCO's have one")
        boxes[annotation["image_id"]] = (x, y, x + width, y + height)
    return [
        _checked(
            Expression(image["file_name"], image["caption"], boxes[image["id"]], (image["width"], image["height"])),
            f"image {image['id']}",
        )
        for image in data["images"]
    ]


def _checked(one: Expression, where: str) -> Expression:
    x0, y0, x1, y1 = one.box
    if not (isinstance(one.image, str) and isinstance(one.text, str)):
        raise ValueError(f"{where}: image and phrase should be texts")
    if not (all(type(edge) is int and edge > 0 for edge in one.size) and x0 < x1 and y0 < y1):
        raise ValueError(f"{where}: the box {list(one.box)} of an image of {one.size} has no area")
    return one


# ---------------------------------------------------------------- what was said


def box_in(text: str) -> Box | None:
    """The first four numbers in brackets, as shares of an edge: thousandths where one is above 1.5, as some models say
    them. None where there is no box, or one without area."""
    if not (found := _BOX.search(text)):
        return None
    x0, y0, x1, y1 = (float(number) for number in found.groups())
    if max(x0, y0, x1, y1) > 1.5:
        x0, y0, x1, y1 = x0 / 1000, y0 / 1000, x1 / 1000, y1 / 1000
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def on_original(box: Box, size: tuple[int, int]) -> Box:
    """Shares of the original's edges -> pixels: the frame of lmms-eval and VLMEvalKit."""
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def from_square(box: Box, size: tuple[int, int]) -> Box:
    """Shares of the square that the image was padded to -> pixels of the original: the frame of LLaVA, which is
    taught boxes of the padded image. The image stands in the middle, half a pixel up and left where it can't."""
    width, height = size
    edge = max(size)
    left, top = (edge - width) // 2, (edge - height) // 2
    return box[0] * edge - left, box[1] * edge - top, box[2] * edge - left, box[3] * edge - top


FRAMES = {"original": on_original, "padded": from_square}


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return across * down / (areas - across * down)


@dataclass
class BoxScores:
    """Of one frame."""

    accuracy: float
    """The share with an IoU of 0.5 or more."""
    interval: tuple[float, float]
    """95% of it, by drawing expressions anew."""
    curve: dict[str, float]
    """The share that reaches each of `LEVELS`."""
    mean_iou: float


def score_boxes(
    expressions: Sequence[Expression], answers: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Both protocols over the same answers, and the answers without a box, whose IoU is 0.

    Raises:
        ValueError: there is none.
    """
    if not expressions:
        raise ValueError("there is no expression to score")
    said = [box_in(answer) for answer in answers]
    found: dict[str, Any] = {"expressions": len(said), "unparsed": sum(box is None for box in said)}
    for name, frame in FRAMES.items():
        ious = np.array(
            [
                0.0 if box is None else iou(frame(box, one.size), one.box)
                for box, one in zip(said, expressions, strict=True)
            ]
        )
        right = ious >= 0.5
        rng = np.random.default_rng(seed)
        # The share of n draws that are right is binomial: the bootstrap of a mean of 0s and 1s, without its table.
        means = rng.binomial(len(right), right.mean(), draws) / len(right)
        low, high = (float(np.quantile(means, share)) for share in (0.025, 0.975))
        curve = {f"{level}": float((ious >= level).mean()) for level in LEVELS}
        found[name] = BoxScores(float(right.mean()), (low, high), curve, float(ious.mean())).__dict__
    return found
