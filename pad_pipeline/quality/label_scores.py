"""Scores the labels, boxes and masks of a run against human annotations of the same images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsInt

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.quality.image_pairs import Common, Pairs, find_pairs
from pad_pipeline.quality.label_names import LabelNames, Match
from pad_pipeline.quality.region_scores import (
    CUTS,
    FOUND_FATES,
    IOUS,
    MEASURES,
    TRUE_FATES,
    Annotations,
    Regions,
)
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.threads import OverShards, Track, map_shards, untracked

SIZES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}
"""The smallest area of a mask of each size, in pixels, as in COCO."""
SCORE_BINS = 10
"""Bins of the score, each 0.1 wide."""


@dataclass
class LabelScores:
    """The result of `score_labels`."""

    common: Common
    categories: list[str]
    """All categories of the truth, sorted. Regions have a category's number in this list."""
    names: dict[str, Match]
    """Label -> category, for each label of the run's tags and regions that has one."""
    labels: Counter[str]
    """How many regions of the compared images have each label."""
    regions: Regions = field(default_factory=Regions)

    @property
    def without_category(self) -> Counter[str]:
        """The labels without a category, and how many regions have each. Nobody knows whether these are right."""
        return Counter({label: number for label, number in self.labels.items() if label not in self.names})


def score_labels(
    shards: ShardFolder,
    truth: ShardFolder,
    names_of: partial[LabelNames],
    categories: frozenset[str] = frozenset(),
    over: OverShards | None = None,
    track: Track[Any] = untracked,
) -> LabelScores:
    """Compare a run with human annotations of the same images.

    It takes about 130 bytes of memory for each region, and a kilobyte for each image of the truth.

    Args:
        shards: the run.
        truth: shards of `pad import` over some of the same images. Any label in them is a category.
        names_of: makes `LabelNames` of the categories.
        categories: further categories that people looked for, though none of these images shows one.
        over: how shards are read, see `map_shards`.
        track: shows the progress.

    Raises:
        UserError: the runs have no image in common, the truth has no region, or a shard is damaged.
    """
    common, pairs = find_pairs(shards, truth)
    known: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    tags: set[str] = set()
    parts = map_shards(over, partial(_labels, shards, truth), pairs)
    for true, found, tagged in track(parts, "reading labels, shard", len(pairs)):
        known, labels, tags = known + true, labels + found, tags | tagged
    if not known:
        raise UserError("truth", truth.folder, "no image in it has a region", "give annotations with boxes or masks")
    names = names_of(categories | known.keys())
    matches = {label: match for label in sorted(tags | labels.keys()) if (match := names(label))}
    scores = LabelScores(common, sorted(names.categories), matches, labels)
    compare = partial(_compare, shards, truth, matches, {name: n for n, name in enumerate(scores.categories)})
    for regions in track(map_shards(over, compare, pairs), "comparing, shard", len(pairs)):
        scores.regions.merge(regions)
    scores.regions = scores.regions.joined()
    return scores


def _labels(shards: ShardFolder, truth: ShardFolder, pairs: Pairs) -> tuple[Counter[str], Counter[str], set[str]]:
    """Return the labels of true and of found regions in a shard, with their numbers, and the labels of tags."""
    true: Counter[str] = Counter()
    found: Counter[str] = Counter()
    tags: set[str] = set()
    for row, place in pairs.images:
        true.update(region["label"] for region in truth.sample(*place, image=False).meta["regions"])
        if row["status"] != "failed":
            meta = shards.sample(pairs.shard, row, image=False).meta
            found.update(region["label"] for region in meta["regions"])
            tags.update(tag["label"] for tag in meta["tags"])
    return true, found, tags


def _compare(
    shards: ShardFolder, truth: ShardFolder, names: Mapping[str, Match], numbers: Mapping[str, int], pairs: Pairs
) -> Regions:
    """Compare the images of a shard."""
    regions, view = Regions(), shards.run.view
    for row, place in pairs.images:
        true = truth.sample(*place, image=False)
        coverage = true.coverage
        true_regions = true.checked_regions()
        if truth.run.view != view:
            masks = [view.coverage(coco_mask.decode(region["rle"])) for region in true_regions]
            coverage = np.array(masks, np.uint8).reshape(-1, view.grid, view.grid)
        found = None
        if row["status"] != "failed":
            sample = shards.sample(pairs.shard, row, image=False)
            sample.checked_regions()
            found = Annotations(sample.meta, sample.coverage)
        regions.add(found, Annotations(true.meta, coverage), names, numbers)
    return regions.joined()


def summary(scores: LabelScores) -> dict[str, Any]:
    """Return all numbers as JSON data. A number that nothing was measured for is NaN."""
    regions = scores.regions
    found, true = regions.found[0], regions.true[0]
    known, single = found[found["category"] >= 0], true[~true["crowd"]]
    result: dict[str, Any] = {
        "images": {
            "compared": scores.common.images,
            "found by": scores.common.by,
            "left out": {reason: number for reason, (number, _) in scores.common.left_out.items()},
        },
        "names": _names(scores),
        "tags": rates(*regions.by_image["tags"].tolist()),
        "labels": rates(*regions.by_image["labels"].tolist()),
    }
    for kind, title in (("box", "boxes"), ("mask", "masks")):
        average = [_rates(known, len(single), kind, bit) for bit in range(len(IOUS))]
        result[title] = average[0] | {
            f"{name} averaged": float(np.mean([one[name] for one in average])) for name in ("precision", "recall", "f1")
        }
        result[title] |= average_precision(known, single, kind, len(scores.categories))
    result["pairs"] = _mean_ious(single)
    result["true regions"] = _fates(single, TRUE_FATES)
    result["found regions"] = _fates(found, FOUND_FATES)
    result["by label"] = {
        name: _group(known[known["category"] == number], single[single["category"] == number])
        for number, name in enumerate(scores.categories)
    }
    sizes = [*SIZES.values()]
    found_size, true_size = (np.digitize(part["area"], sizes) - 1 for part in (known, single))
    result["by size"] = {
        size: _of_found(known[found_size == n]) | _of_true(single[true_size == n]) for n, size in enumerate(SIZES)
    }
    bins = np.minimum((known["score"] * SCORE_BINS + 1e-9).astype(int), SCORE_BINS - 1)
    result["by score"] = {
        f"{n / SCORE_BINS:.1f} to {(n + 1) / SCORE_BINS:.1f}": _of_found(known[bins == n]) for n in range(SCORE_BINS)
    }
    result["curves"] = {
        name: [
            {"threshold": float(cut)} | rates(right, kept, len(single)) | {"regions": int(kept)}
            for cut, right, kept in zip(CUTS[name], regions.right[name], regions.kept[name], strict=True)
        ]
        for name in MEASURES
    }
    return result


def rates(right: SupportsInt, found: SupportsInt, true: SupportsInt) -> dict[str, Any]:
    """Return precision, recall and F1 with the counts that they are made of. A rate over nothing is NaN."""
    right, found, true = int(right), int(found), int(true)
    return {
        "precision": right / found if found else float("nan"),
        "recall": right / true if true else float("nan"),
        "f1": 2 * right / (found + true) if found + true else float("nan"),
        "right": right,
        "found": found,
        "true": true,
    }


def _rates(found: np.ndarray, true: int, kind: str, bit: int) -> dict[str, Any]:
    """Return the rates at one of `IOUS`. What is a part of a crowd does not count."""
    of_crowd = np.count_nonzero(found[f"{kind}_crowds"] >> bit & 1)
    return rates(np.count_nonzero(found[f"{kind}_hits"] >> bit & 1), len(found) - of_crowd, true)


def _group(found: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    return {
        "boxes": _rates(found, len(true), "box", 0),
        "masks": _rates(found, len(true), "mask", 0),
        "pairs": _mean_ious(true),
        "true regions": _fates(true, TRUE_FATES),
    }


def _of_found(found: np.ndarray) -> dict[str, Any]:
    """Return the precision of boxes and masks."""
    part: dict[str, Any] = {"found": len(found)}
    for kind, title in (("box", "boxes"), ("mask", "masks")):
        part[title] = _rates(found, 0, kind, 0)["precision"]
    return part


def _of_true(true: np.ndarray) -> dict[str, Any]:
    """Return the recall of boxes, and of masks in these boxes."""
    boxes, masks = ~np.isnan(true["box_iou"]), true["fate"] == TRUE_FATES.index("found")
    recalls = {
        f"{name} found": float(part.mean()) if len(true) else math.nan
        for name, part in (("boxes", boxes), ("masks", masks))
    }
    return {"true": len(true)} | recalls


def _mean_ious(true: np.ndarray) -> dict[str, Any]:
    """Return the mean IoUs of true regions with their matches, by boxes."""
    matched = true[~np.isnan(true["box_iou"])]
    seen = matched["patch_iou"][~np.isnan(matched["patch_iou"])]
    return {
        "number": len(matched),
        "box IoU": float(matched["box_iou"].mean()) if len(matched) else float("nan"),
        "mask IoU": float(matched["mask_iou"].mean()) if len(matched) else float("nan"),
        "patch IoU": float(seen.mean()) if len(seen) else float("nan"),
    }


def _fates(regions: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(regions["fate"], minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _names(scores: LabelScores) -> dict[str, Any]:
    ways: dict[str, dict[str, str]] = {}
    for label, (category, how) in scores.names.items():
        if how != "exact" or label != category:
            ways.setdefault(how, {})[label] = category
    return {
        "categories": len(scores.categories),
        "mapped": ways,
        "without a category": dict(scores.without_category.most_common()),
    }


def average_precision(found: np.ndarray, true: np.ndarray, kind: str, categories: int) -> dict[str, float]:
    """Return AP and AR as `COCOeval` of pycocotools does, for all areas and up to any number of regions an image.

    Args:
        found: the regions with a category, as in `FOUND`, in the order of images.
        true: the true regions that are no crowd, as in `TRUE`.
        kind: `box` or `mask`.
        categories: the number of categories.

    Returns:
        `AP` and `AR`, averaged over `IOUS`, and `AP50`, at the first of them; NaN without a true region.
    """
    precisions, recalls = [], []
    order = np.argsort(-found["score"], kind="stable")
    found = found[order]
    totals = np.bincount(true["category"], minlength=categories)
    for category in np.flatnonzero(totals):
        mine = found[found["category"] == category]
        for bit in range(len(IOUS)):
            hits = mine[f"{kind}_hits"] >> bit & 1
            counted = (mine[f"{kind}_crowds"] >> bit & 1) == 0
            right, all_found = np.cumsum(hits[counted]), np.arange(1, np.count_nonzero(counted) + 1)
            recall, precision = right / totals[category], right / all_found
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
            precisions.append(np.append(envelope, 0.0)[np.minimum(at, len(envelope))].mean())
            recalls.append(recall[-1] if len(recall) else 0.0)
    if not precisions:
        return dict.fromkeys(("AP", "AP50", "AR"), float("nan"))
    return {
        "AP": float(np.mean(precisions)),
        "AP50": float(np.mean(precisions[:: len(IOUS)])),
        "AR": float(np.mean(recalls)),
    }
