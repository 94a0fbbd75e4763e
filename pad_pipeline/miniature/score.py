"""Shards of drawn scenes against what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.geometry import View
from pad_pipeline.miniature.kinds import PARTS, THINGS
from pad_pipeline.miniature.world import Scene, TrueRegion
from pad_pipeline.shards.reader import Sample, open_shards

IOU = 0.5
"""A box is found where its IoU with the true one is at least this."""
SLIVER = 0.5
"""In patches: where the crop leaves less of a thing than this, in truth and as found, its patch masks do not count."""


@dataclass
class Boxes:
    """Boxes of one kind of label against the true ones."""

    matched: int = 0
    found: int = 0
    true: int = 0

    @property
    def recall(self) -> float:
        """The share of all true ones that a box of their label is on, whether the tagger named them or not."""
        return self.matched / max(self.true, 1)

    @property
    def precision(self) -> float:
        """The share of the found ones that are on a true one of their label, each true one counted once."""
        return self.matched / max(self.found, 1)


@dataclass
class Score:
    """Counts and sums over scenes; the rates come out of them."""

    scenes: int = 0
    tags_right: int = 0
    tags_found: int = 0
    tags_true: int = 0
    things: Boxes = field(default_factory=Boxes)
    parts: Boxes = field(default_factory=Boxes)
    things_tagged: int = 0
    """True things whose label is among the tags that the tagger gave."""
    boxes_on_things: int = 0
    """Boxes with a thing's label that are on some thing, whatever its label."""
    labels_right: int = 0
    """Those of them that have the label of the thing that they are on."""
    mask_ious: list[float] = field(default_factory=list)
    patch_ious: list[float] = field(default_factory=list)

    @property
    def tag_f1(self) -> float:
        """Micro F1 of the tags."""
        return 2 * self.tags_right / max(self.tags_found + self.tags_true, 1)

    @property
    def recall_given_tags(self) -> float:
        """The recall of things among those that were tagged."""
        return self.things.matched / max(self.things_tagged, 1)

    @property
    def label_accuracy(self) -> float:
        """The share of the boxes on things that have the right label."""
        return self.labels_right / max(self.boxes_on_things, 1)

    @property
    def mask_iou(self) -> float:
        """Mean IoU of matched things' masks with the true ones."""
        return float(np.mean(self.mask_ious)) if self.mask_ious else 0.0

    @property
    def patch_iou(self) -> float:
        """Mean of sum(min) / sum(max) of found and true coverage, over matched things, slivers in the view left out."""
        return float(np.mean(self.patch_ious)) if self.patch_ious else 0.0

    def add(self, scene: Scene, meta: dict[str, Any], coverage: np.ndarray, view: View) -> None:
        """Take one scene.

        Args:
            scene: the truth.
            meta: the sample's JSON member.
            coverage: its masks, uint8 `[R, grid, grid]`.
            view: of the shards.
        """
        self.scenes += 1
        tags, true = {tag["label"] for tag in meta["tags"]}, {region.label for region in scene.regions}
        self.tags_right += len(tags & true)
        self.tags_found += len(tags)
        self.tags_true += len(true)
        self.things_tagged += sum(region.kind == "thing" and region.label in tags for region in scene.regions)
        found = [(region["label"], tuple(region["box"])) for region in meta["regions"]]
        for position, thing in self.add_boxes(scene, found):
            mask = coco_mask.decode(meta["regions"][position]["rle"]).astype(bool)
            self.mask_ious.append(float((mask & thing.mask).sum() / (mask | thing.mask).sum()))
            exact, found_coverage = seen_share(thing.mask, view), coverage[position] / 255
            if (most := np.maximum(exact, found_coverage).sum()) >= SLIVER:
                self.patch_ious.append(float(np.minimum(exact, found_coverage).sum() / most))

    def add_boxes(self, scene: Scene, found: list[tuple[str, tuple[float, ...]]]) -> list[tuple[int, TrueRegion]]:
        """Take the boxes of one scene: label and `xyxy`, best first.

        Returns:
            The place of each box that is on a thing of its label, and the thing; each thing once.
        """
        things = [region for region in scene.regions if region.kind == "thing"]
        for label, box in found:
            if label in THINGS:
                nearest, named = max(((iou(thing.box, box), thing.label) for thing in things), default=(0.0, ""))
                self.boxes_on_things += nearest >= IOU
                self.labels_right += nearest >= IOU and named == label
        self._match(self.parts, [region for region in scene.regions if region.kind == "part"], found, PARTS)
        return self._match(self.things, things, found, THINGS)

    @staticmethod
    def _match(
        boxes: Boxes, true: list[TrueRegion], found: list[tuple[str, tuple[float, ...]]], labels: Container[str]
    ) -> list[tuple[int, TrueRegion]]:
        free, matched = list(true), []
        boxes.true += len(true)
        for position, (label, box) in enumerate(found):
            if label in labels:
                boxes.found += 1
                fitting = [(iou(one.box, box), number) for number, one in enumerate(free) if one.label == label]
                overlap, number = max(fitting, default=(0.0, 0))
                if overlap >= IOU:
                    matched.append((position, free.pop(number)))
        boxes.matched += len(matched)
        return matched


def seen_share(mask: np.ndarray, view: View) -> np.ndarray:
    """How much of each patch a mask covers, float `[grid, grid]`, 0..1: not by `View.coverage`, which is under test
    here, but as the vision encoder comes to see an image. The mask is resized as an image (by area averages), its
    center is cut out, and the pixels of each patch are averaged. To about 1%, for images that are made smaller.

    Raises:
        ValueError: the view does not crop.
    """
    if view.fit != "crop":
        raise ValueError(f"the second way is written for fit crop, and the view has {view.fit}")
    height, width = mask.shape
    scale = view.size / min(width, height)
    large = max(view.size, int(width * scale)), max(view.size, int(height * scale))
    fine = mask.repeat(6, 0).repeat(6, 1)  # Pillow's box filter takes pixels whole or not at all
    image = Image.fromarray((fine * 255).astype(np.uint8)).resize(large, Image.Resampling.BOX)
    left, top = (large[0] - view.size) // 2, (large[1] - view.size) // 2
    pixels = np.asarray(image.crop((left, top, left + view.size, top + view.size))) / 255
    return pixels.reshape(view.grid, view.patch, view.grid, view.patch).mean((1, 3))


def score_shards(folder: Path, scene_of: Callable[[str], Scene]) -> Score:
    """Score a run over drawn scenes; an image that failed has found nothing.

    Args:
        folder: the run's.
        scene_of: gives the scene behind a key.
    """
    shards, score = open_shards(folder), Score()
    nothing: dict[str, Any] = {"tags": [], "regions": []}
    empty = np.zeros((0, shards.run.view.grid, shards.run.view.grid), np.uint8)
    for name, row in shards.rows():
        if row["status"] == "failed":
            score.add(scene_of(row["key"]), nothing, empty, shards.run.view)
            continue
        sample: Sample = shards.sample(name, row, image=False)
        score.add(scene_of(row["key"]), sample.meta, sample.coverage, shards.run.view)
    return score
