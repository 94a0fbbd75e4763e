"""Score a model's boxes for referring expressions, in both coordinate frames that models use."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pad_pipeline.errors import UserError
from pad_pipeline.records import Box

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The IoU thresholds of the accuracy curve."""
BOOTSTRAP_SAMPLES = 1000
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(rf"[\[(]{','.join([_NUMBER] * 4)}[\])]")


class Expression(NamedTuple):
    """A referring expression: a phrase for one thing in an image, with the true box of the thing."""

    image: str
    """The path of the image file, relative to the folder of images."""
    text: str
    box: Box
    """The true box, xyxy in pixels of the original image."""
    size: tuple[int, int]
    """Width and height of the image."""


def read_expressions(path: Path) -> list[Expression]:
    """Read an MDETR JSON (`finetune_refcoco_val.json`) or an InternVL JSONL (`refcoco_val.jsonl`).

    Raise `UserError` if the file has another format, or a broken entry.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("data", path, f"it can't be read ({error})", "check the path") from error
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [
                _checked(one["image"], one["sent"], one["bbox"], one, f"line {n}") for n, one in enumerate(entries, 1)
            ]
        return _from_mdetr(json.loads(text))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        rule = f"it holds no expressions that can be read ({type(error).__name__}: {error})"
        remedy = "give an MDETR JSON (images with captions, annotations with bbox) or a JSONL of {image, sent, bbox}"
        raise UserError("data", path, rule, remedy) from error


def _from_mdetr(data: dict[str, Any]) -> list[Expression]:
    """Read the content of an MDETR JSON. For each expression, it has an image entry with one annotation."""
    boxes: dict[Any, Box] = {}
    for annotation in data["annotations"]:
        x, y, width, height = map(float, annotation["bbox"])
        if annotation["image_id"] in boxes:
            raise ValueError(f"expression {annotation['image_id']} has two boxes, and RefCOCO's have one")
        boxes[annotation["image_id"]] = (x, y, x + width, y + height)
    images = data["images"]
    return [_checked(one["file_name"], one["caption"], boxes[one["id"]], one, f"image {one['id']}") for one in images]


def _checked(image: Any, text: Any, box: Sequence[Any], entry: dict[str, Any], where: str) -> Expression:
    """Return an expression with the box `[x0, y0, x1, y1]` in pixels; raise ValueError for an invalid entry."""
    x0, y0, x1, y1 = map(float, box)
    size = (entry["width"], entry["height"])
    if not (isinstance(image, str) and isinstance(text, str)):
        raise ValueError(f"{where}: image and phrase should be texts")
    if not (all(type(edge) is int and edge > 0 for edge in size) and x0 < x1 and y0 < y1):
        raise ValueError(f"{where}: the box {[x0, y0, x1, y1]} of an image of {size} has no area")
    return Expression(image, text, (x0, y0, x1, y1), size)


def parse_box(text: str) -> Box | None:
    """Return the first box in a text (four numbers in brackets), xyxy in fractions (0..1) of the frame's edges.

    Some models write thousandths: all numbers count as such if one is above 1.5. None means no box, or an empty box.
    """
    if not (match := _BOX.search(text)):
        return None
    x0, y0, x1, y1 = (float(number) for number in match.groups())
    if max(x0, y0, x1, y1) > 1.5:
        x0, y0, x1, y1 = x0 / 1000, y0 / 1000, x1 / 1000, y1 / 1000
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def image_to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Convert a box from fractions of the image's edges to pixels. lmms-eval and VLMEvalKit use this frame."""
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


def square_to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Convert a box from fractions of the image padded to a square to pixels of the image. LLaVA uses this frame.

    The image is in the middle of the square. If the padding is odd, it is half a pixel above or left of the middle.
    """
    edge = max(size)
    left, top = (edge - size[0]) // 2, (edge - size[1]) // 2
    return box[0] * edge - left, box[1] * edge - top, box[2] * edge - left, box[3] * edge - top


FRAMES = {"original": image_to_pixels, "padded": square_to_pixels}
"""The function of each frame that converts a box, for an image of (width, height), to pixels of the image."""


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection over union (0..1) of two boxes, xyxy; 0 without overlap."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return across * down / (areas - across * down)


def score_boxes(expressions: Sequence[Expression], answers: Sequence[str]) -> dict[str, Any]:
    """Score a model's answer to each expression in both frames; an answer without a box has an IoU of 0.

    Returns:
        The number of `expressions`, the number of answers without a box (`unparsed`), and four scores for each of
        `FRAMES`: `accuracy`, the share of answers with an IoU of 0.5 or more; `interval`, its 95% confidence interval
        by bootstrap over expressions; `curve`, the share of answers that reach each of `LEVELS`; and `mean_iou`.

    Raises:
        ValueError: there is no expression.
    """
    if not expressions:
        raise ValueError("there is no expression to score")
    boxes = [parse_box(answer) for answer in answers]
    scores: dict[str, Any] = {"expressions": len(boxes), "unparsed": sum(box is None for box in boxes)}
    for name, frame in FRAMES.items():
        pairs = zip(boxes, expressions, strict=True)
        ious = np.array([0.0 if box is None else iou(frame(box, one.size), one.box) for box, one in pairs])
        right = ious >= 0.5
        rng = np.random.default_rng(0)
        # The mean of a bootstrap sample of 0s and 1s has a binomial distribution, so nothing is resampled.
        means = rng.binomial(len(right), right.mean(), BOOTSTRAP_SAMPLES) / len(right)
        low, high = (float(np.quantile(means, share)) for share in (0.025, 0.975))
        scores[name] = {
            "accuracy": float(right.mean()),
            "interval": (low, high),
            "curve": {f"{level}": float((ious >= level).mean()) for level in LEVELS},
            "mean_iou": float(ious.mean()),
        }
    return scores
