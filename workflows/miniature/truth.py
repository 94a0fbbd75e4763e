"""Functions that score trained models on drawn scenes with known truth. A recipe names them in `[scores]`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import index_of
from pad_pipeline.miniature.kinds import PARTS, THINGS
from pad_pipeline.miniature.language import DESCRIBE_PROMPTS
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.chat import Chat
from pad_pipeline.workflows.learning.scores import Trained
from pad_pipeline.workflows.miniature.answers import ask_boxes, ask_questions, score_captions
from pad_pipeline.workflows.miniature.ideal import ask_ideal_boxes

HALF = 128
"""The coverage, in 255ths, of a patch that shows a part."""


class LabelAccuracy(NamedTuple):
    """The shares of patches that are right. A patch is right if the label nearest to its token by cosine, of all labels
    of the world, is one that it shows."""

    all: float
    """Of the patches that show a single label. Most of them show a ground, so this number says little about things."""
    things: float
    """Of those that show a thing alone."""
    stuff: float
    """Of those that show a ground or a backdrop alone."""
    parts: float
    """Of the pairs of a part and a patch that it covers by half or more. The label must be the part's, and not its
    thing's, which the patch shows too."""


def patches(trained: Trained, seed: int) -> dict[str, float]:
    """Score the tokens of patches with `label_accuracy`. Raise `UserError` if an image of the held-out shards is no
    scene of world `seed`."""
    scenes, view = _heldout(trained, seed)
    return label_accuracy(Subject(trained.model), scenes, view)._asdict()


def captions(trained: Trained, seed: int) -> dict[str, float]:
    """Score a model's captions of the held-out scenes with `CaptionScore`. Arguments and errors are as in `patches`."""
    question = "" if trained.template == "plain" else DESCRIBE_PROMPTS[0]
    return score_captions(Chat(trained.model), _heldout(trained, seed)[0], question).rates()


def boxes(trained: Trained, seed: int) -> dict[str, float]:
    """Score the boxes that a model gives for referring expressions: the share with an IoU of 0.5 or more, the mean IoU,
    and the share of answers without a box. Arguments and errors are as in `patches`."""
    return _box_rates(ask_boxes(Chat(trained.model), _heldout(trained, seed)[0]))


def questions(trained: Trained, seed: int) -> dict[str, float]:
    """Score a model's answers to the world's questions by `ask_questions`. Arguments and errors are as in `patches`."""
    return ask_questions(Chat(trained.model), _heldout(trained, seed)[0])


def ideal(trained: Trained, seed: int) -> dict[str, float]:
    """Score the boxes that a model's LLM gives with ideal tokens, see `ask_ideal_boxes`: as `boxes`."""
    found = ask_ideal_boxes(Subject(trained.model), Chat(trained.model), _heldout(trained, seed)[0])
    return _box_rates(found)


def _box_rates(found: dict[str, Any]) -> dict[str, float]:
    numbers = {name: found["padded"][name] for name in ("accuracy", "mean_iou")}
    return numbers | {"unparsed": found["unparsed"] / found["expressions"]}


def _heldout(trained: Trained, seed: int) -> tuple[list[Scene], View]:
    """Draw the held-out scenes again, because a drawn scene has its truth. Return them with the view of the shards."""
    with rename_field(shards="heldout"):
        shards = open_shards(trained.heldout)
    scenes = []
    for _, row in shards.rows():
        with suppress(ValueError):
            scene = draw_scene(seed, index_of(row["key"]))
            if scene.image.size == (row["width"], row["height"]):
                scenes.append(scene)
                continue
        rule = f"its image {row['key']} is no scene of world {seed}, and the score needs the truth of a scene"
        raise UserError("heldout", shards.folder, rule, "give shards of that world, or another `seed` in the recipe")
    return scenes[: trained.limit], shards.run.view


@torch.inference_mode()
def label_accuracy(subject: Subject, scenes: list[Scene], view: View) -> LabelAccuracy:
    """Name each patch of the scenes by the label whose embedding is nearest to its token, and score these names.

    `view` must be the view of the model's vision tower.
    """
    preprocessor = subject.preprocessor(view)
    words = F.normalize(subject.embed(list(LABELS)), dim=-1)
    names = []
    for start in range(0, len(scenes), 32):
        part = scenes[start : start + 32]
        _, tokens = subject.encode_images(torch.stack([preprocessor.normalized(scene.image) for scene in part]))
        names.append((F.normalize(tokens.float().cpu(), dim=-1) @ words.t()).argmax(-1).numpy())
    return score_names(np.concatenate(names), scenes, view)


def score_names(names: np.ndarray, scenes: list[Scene], view: View) -> LabelAccuracy:
    """Score a label for each patch of each scene, int `[scenes, grid * grid]`, indices in `LABELS`."""
    alone = np.stack([single_labels(scene, view) for scene in scenes])
    right, thing, stuff = names == alone, alone < len(THINGS), alone >= len(THINGS) + len(PARTS)
    part_right = [
        of_scene[view.coverage(region.mask).flatten() >= HALF] == LABELS.index(region.label)
        for of_scene, scene in zip(names, scenes, strict=True)
        for region in scene.regions
        if region.kind == "part"
    ]
    shares = [right[(alone >= 0) & which] for which in (True, thing, stuff)] + [np.concatenate([*part_right, []])]
    return LabelAccuracy(*(float(share.mean()) if len(share) else float("nan") for share in shares))


def single_labels(scene: Scene, view: View) -> np.ndarray:
    """Return the index in `LABELS` of the label of each patch that shows a single label, int `[grid * grid]`; else -1.

    Such a patch shows nothing else, because every pixel of a scene belongs to a region.
    """
    covered = np.zeros((len(LABELS), view.grid * view.grid), bool)
    for region in scene.regions:
        covered[LABELS.index(region.label)] |= view.coverage(region.mask).flatten() > 0
    return np.where(covered.sum(0) == 1, covered.argmax(0), -1)
