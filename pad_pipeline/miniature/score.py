"""Score shards of drawn scenes against the true regions."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.geometry import View
from pad_pipeline.masks import decode_mask
from pad_pipeline.miniature.kinds import PARTS, THINGS
from pad_pipeline.miniature.world import Scene, TrueRegion
from pad_pipeline.records import SampleJson
from pad_pipeline.shards.reader import open_shards

IOU = 0.5
"""The smallest IoU with which a box matches a true box."""
SLIVER = 0.5
"""A matched thing gets no patch IoU if the union of its true and found coverage is below this many patches: then the
crop leaves only a sliver of it."""
Found = tuple[str, tuple[float, ...]]
"""The label and the box (xyxy in pixels) of a region."""


@dataclass
class Counts:
    """Counts of predicted tags or boxes (`found`), of true ones, and of predicted ones that match a true one."""

    matched: int = 0
    found: int = 0
    true: int = 0

    def match(self, true: list[TrueRegion], found: list[Found], labels: Container[str]) -> list[tuple[int, TrueRegion]]:
        """Add the boxes of one scene that have one of `labels`; return pairs as `Score.add_boxes`."""
        free, matched = list(true), []
        for position, (label, box) in enumerate(found):
            if label in labels:
                self.found += 1
                fitting = [(iou(one.box, box), number) for number, one in enumerate(free) if one.label == label]
                overlap, number = max(fitting, default=(0.0, 0))
                if overlap >= IOU:
                    matched.append((position, free.pop(number)))
        self.true += len(true)
        self.matched += len(matched)
        return matched

    @property
    def recall(self) -> float:
        """The share of true boxes that a found box of the same label matches, including labels that were not tagged."""
        return self.matched / max(self.true, 1)

    @property
    def precision(self) -> float:
        """The share of found boxes that match a true box of the same label. A true box is matched only once."""
        return self.matched / max(self.found, 1)


@dataclass
class Score:
    """The score of a run: counts over all scenes, and rates from these counts."""

    scenes: int = 0
    tags: Counts = field(default_factory=Counts)
    things: Counts = field(default_factory=Counts)
    parts: Counts = field(default_factory=Counts)
    things_tagged: int = 0
    """True things whose label is among the image's tags."""
    boxes_on_things: int = 0
    """Boxes with the label of any thing that match a thing of any label."""
    labels_right: int = 0
    """Boxes with the label of any thing that match a thing of the same label."""
    mask_ious: list[float] = field(default_factory=list)
    patch_ious: list[float] = field(default_factory=list)

    @property
    def tag_f1(self) -> float:
        """The F1 score of the tags over all scenes together (micro average)."""
        return 2 * self.tags.matched / max(self.tags.found + self.tags.true, 1)

    @property
    def recall_given_tags(self) -> float:
        """The recall of those things whose label the tagger found."""
        return self.things.matched / max(self.things_tagged, 1)

    @property
    def label_accuracy(self) -> float:
        """The share of boxes on things with the right label."""
        return self.labels_right / max(self.boxes_on_things, 1)

    @property
    def mask_iou(self) -> float:
        """The mean IoU of the masks of matched things with their true masks."""
        return float(np.mean(self.mask_ious)) if self.mask_ious else 0.0

    @property
    def patch_iou(self) -> float:
        """The mean of sum(min) / sum(max) of found and true coverage, over matched things that are not slivers."""
        return float(np.mean(self.patch_ious)) if self.patch_ious else 0.0

    def add(self, scene: Scene, meta: SampleJson, coverage: np.ndarray, view: View) -> None:
        """Add one scene's annotations: the JSON member of its sample, and its coverage, uint8 `[R, grid, grid]`."""
        self.scenes += 1
        tags, true = {tag["label"] for tag in meta["tags"]}, {region.label for region in scene.regions}
        self.tags.matched += len(tags & true)
        self.tags.found += len(tags)
        self.tags.true += len(true)
        self.things_tagged += sum(region.kind == "thing" and region.label in tags for region in scene.regions)
        found = [(region["label"], tuple(region["box"])) for region in meta["regions"]]
        for position, thing in self.add_boxes(scene, found):
            mask = decode_mask(meta["regions"][position]["rle"], *thing.mask.shape[::-1]).astype(bool)
            self.mask_ious.append(float((mask & thing.mask).sum() / (mask | thing.mask).sum()))
            exact, found_coverage = coverage_by_resizing(thing.mask, view), coverage[position] / 255
            if (most := np.maximum(exact, found_coverage).sum()) >= SLIVER:
                self.patch_ious.append(float(np.minimum(exact, found_coverage).sum() / most))

    def add_boxes(self, scene: Scene, found: list[Found]) -> list[tuple[int, TrueRegion]]:
        """Add the boxes found in one scene, best box first; match each thing only once.

        Return pairs of the index of a box and the thing of the same label that it matches.
        """
        things = [region for region in scene.regions if region.kind == "thing"]
        for label, box in found:
            nearest, named = max(((iou(thing.box, box), thing.label) for thing in things), default=(0.0, ""))
            if label in THINGS and nearest >= IOU:
                self.boxes_on_things += 1
                self.labels_right += named == label
        self.parts.match([region for region in scene.regions if region.kind == "part"], found, PARTS)
        return self.things.match(things, found, THINGS)


def coverage_by_resizing(mask: np.ndarray, view: View) -> np.ndarray:
    """Return how much of each patch a mask covers, float64 `[grid, grid]`, 0..1; only for views with the fit `crop`.

    This does not use `View.coverage`, which the score tests. Instead, the mask is treated as an image for the vision
    encoder: it is resized (by area averages), its center is cut out, and the pixels of each patch are averaged. The
    precision is about 1% for images that become smaller.
    """
    if view.fit != "crop":
        raise ValueError(f"the coverage of a resized mask needs the fit crop, and the view has {view.fit}")
    height, width = mask.shape
    scale = view.size / min(width, height)
    large = max(view.size, int(width * scale)), max(view.size, int(height * scale))
    fine = mask.repeat(6, 0).repeat(6, 1)  # for a finer average: Pillow's box filter has whole pixels only
    image = Image.fromarray((fine * 255).astype(np.uint8)).resize(large, Image.Resampling.BOX)
    left, top = (large[0] - view.size) // 2, (large[1] - view.size) // 2
    pixels = np.asarray(image.crop((left, top, left + view.covered, top + view.covered))) / 255
    shares: np.ndarray = pixels.reshape(view.grid, view.patch, view.grid, view.patch).mean((1, 3))
    return shares


def score_shards(folder: Path, scene_of: Callable[[str], Scene]) -> Score:
    """Score shards by each key's scene, from `scene_of`. A failed image counts as an image without tags."""
    shards, score = open_shards(folder), Score()
    for name, row in shards.rows():
        meta, coverage = cast(SampleJson, {"tags": [], "regions": []}), np.zeros(0, np.uint8)
        if row["status"] != "failed":
            sample = shards.sample(name, row, image=False)
            meta, coverage = sample.meta, sample.coverage
        score.add(scene_of(row["key"]), meta, coverage, shards.run.view)
    return score
