"""Scores of trained models against the exact truth of drawn scenes, for `[scores]` of an experiment's recipe."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import index_of
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import DESCRIBE_PROMPTS
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.training.chat import Chat
from pad_pipeline.workflows.learning.scores import Trained
from pad_pipeline.workflows.miniature.answers import ask_boxes, score_captions


def _heldout(trained: Trained) -> ShardFolder:
    with rename_field(shards="heldout"):
        return open_shards(trained.heldout)


def patches(trained: Trained, seed: int) -> dict[str, float]:
    """Score the tokens of patches that show one label alone, see `label_accuracy`.

    Args:
        trained: the model; its held-out shards are of drawn scenes.
        seed: of their world.

    Raises:
        UserError: the shards are of something else.
    """
    shards = _heldout(trained)
    accuracy = label_accuracy(Subject(trained.model), scenes_of(shards, seed)[: trained.limit], shards.run.view)
    return dict(zip(("all", "things"), accuracy, strict=True))


def captions(trained: Trained, seed: int) -> dict[str, float]:
    """Score the captions of the held-out scenes with `CaptionScore`. Arguments and errors are those of `patches`."""
    scenes = scenes_of(_heldout(trained), seed)[: trained.limit]
    question = "" if trained.template == "plain" else DESCRIBE_PROMPTS[0]
    return score_captions(Chat(trained.model), scenes, question).rates()


def boxes(trained: Trained, seed: int) -> dict[str, float]:
    """Score the boxes that a model says for referring expressions: the share with an IoU of 0.5 or more, the mean IoU,
    the share of answers without a box; arguments and errors as in `patches`."""
    scenes = scenes_of(_heldout(trained), seed)[: trained.limit]
    found = ask_boxes(Chat(trained.model), scenes)
    numbers = {name: found["padded"][name] for name in ("accuracy", "mean_iou")}
    return numbers | {"unparsed": found["unparsed"] / found["expressions"]}


def scenes_of(shards: ShardFolder, seed: int) -> list[Scene]:
    """Draw the scenes of shards again, with their truth, in the order of the shards.

    Raises:
        UserError: an image is no scene of world `seed`.
    """
    scenes = []
    for _, row in shards.rows():
        with suppress(ValueError):
            scene = draw_scene(seed, index_of(row["key"]))
            if scene.image.size == (row["width"], row["height"]):
                scenes.append(scene)
                continue
        rule = f"its image {row['key']} is no scene of world {seed}, whose truth the scores know"
        raise UserError("heldout", shards.folder, rule, "give shards of that world, or another `seed` in the recipe")
    return scenes


@torch.inference_mode()
def label_accuracy(subject: Subject, scenes: list[Scene], view: View) -> tuple[float, float]:
    """Return the share of patches with a single label whose token is nearest (by cosine, among all labels of the world)
    to the embedding of that label: of all such patches, and of those that show a thing.

    Args:
        subject: the model.
        scenes: with their truth.
        view: the grid of patches; it must be the tower's.
    """
    sight = subject.sight(view)
    words = F.normalize(subject.embed(list(LABELS)), dim=-1)
    right, shown = [], []
    for start in range(0, len(scenes), 32):
        part = scenes[start : start + 32]
        _, tokens = subject.see(torch.stack([sight.normalized(scene.image) for scene in part]))
        nearest = (F.normalize(tokens.float().cpu(), dim=-1) @ words.t()).argmax(-1)
        truth = torch.from_numpy(np.stack([single_labels(scene, view) for scene in part]))
        right.append((nearest == truth)[truth >= 0])
        shown.append(truth[truth >= 0])
    hits, labels = torch.cat(right).float(), torch.cat(shown)
    things = labels < len(THINGS)  # they come first in LABELS
    return float(hits.mean()), float(hits[things].mean())


def single_labels(scene: Scene, view: View) -> np.ndarray:
    """Return the label of each patch that just one label is true of, as its index in `LABELS`; -1 elsewhere.

    Returns:
        int `[grid * grid]`. Every pixel belongs to a thing or to stuff, so such a patch shows nothing else.
    """
    covered = np.zeros((len(LABELS), view.grid * view.grid), bool)
    for region in scene.regions:
        covered[LABELS.index(region.label)] |= view.coverage(region.mask).flatten() > 0
    return np.where(covered.sum(0) == 1, covered.argmax(0), -1)
