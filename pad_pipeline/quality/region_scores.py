"""Compares the regions of one image with true ones, and says what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.quality.label_names import Match
from pad_pipeline.quality.matching import NONE, box_ious, mask_ious, match
from pad_pipeline.records import RegionJson, SampleJson

IOUS = np.linspace(0.5, 0.95, 10)
"""The smallest IoUs of a match over which COCO averages; the first one is that of every other number here."""
NEAR = 0.1
"""A found box with a lower IoU with every true box of its category is on nothing that people labeled so."""
SLIVER = 0.5
"""A pair gets no patch IoU if the union of its coverages is below this many patches: then the view leaves only a sliver
of it."""
TRUE_FATES = ("image failed", "not tagged", "no box", "another label", "poor mask", "found")
"""What became of a true region, by the first step that lost it: its image failed; its category is no tag of the image
(the tagger); no box has its place and category (the detector), or one without a match has the place and another label;
the mask in its box is poor (the segmenter)."""
FOUND_FATES = (
    "right",
    "poor mask",
    "another label",
    "found twice",
    "misplaced",
    "on nothing",
    "of a crowd",
    "no category",
)
"""What a found region is: right; right except for its mask; on a true region of another category; a second box of one
that has its match; near one of its category; on nothing that people labeled; a part of a crowd; or without a category,
so that nobody knows whether it is right."""
MEASURES = ("score", "label_score", "predicted_iou", "patches")
"""The numbers of a region for which thresholds are tried; `patches` is its coverage, summed over the patches."""
CUTS = {name: np.arange(101) / 100 for name in MEASURES} | {"patches": np.concatenate(([0], 2.0 ** np.arange(-4, 9)))}
"""The thresholds that are tried. The first one drops nothing."""
FOUND = np.dtype(
    [("category", "i4"), ("fate", "i1"), *((name, "f8") for name in MEASURES), ("area", "f8")]
    + [(f"{kind}_{what}", "u2") for kind in ("box", "mask") for what in ("hits", "crowds")]
)
"""A found region: the number of its category, -1 for none; its fate; its numbers; the pixels of its mask; and one bit
for each of `IOUS`, the first one lowest, for a match with a true region and for one with a crowd."""
TRUE = np.dtype(
    [("category", "i4"), ("fate", "i1"), ("crowd", "?"), ("area", "f8")]
    + [(name, "f8") for name in ("box_iou", "mask_iou", "patch_iou")]
)
"""A true region: its category, its fate, whether it is a crowd, the pixels of its mask, and the IoUs of its box, mask
and coverage with those of its match; NaN without a match."""


class Annotations(NamedTuple):
    """The annotations of an image."""

    meta: SampleJson
    """The JSON member of its sample."""
    coverage: np.ndarray
    """The coverage of its regions, uint8 `[R, grid, grid]`."""


@dataclass
class Regions:
    """The compared regions of images, and counts that can't be taken from the regions afterwards."""

    found: list[np.ndarray] = field(default_factory=list)
    """Arrays of `FOUND`: those of an image stand together, best score first."""
    true: list[np.ndarray] = field(default_factory=list)
    """Arrays of `TRUE`."""
    kept: dict[str, np.ndarray] = field(default_factory=lambda: _zeros(CUTS))
    """For each cut of a measure: the regions with a category that stay, without those of a crowd."""
    right: dict[str, np.ndarray] = field(default_factory=lambda: _zeros(CUTS))
    """For each cut of a measure: the regions that stay and are right."""
    by_image: dict[str, np.ndarray] = field(default_factory=lambda: _zeros({"tags": range(3), "labels": range(3)}))
    """For the categories of an image's tags, and of its regions: how many are right, found, and true."""

    def add(
        self, found: Annotations | None, true: Annotations, names: Mapping[str, Match], numbers: Mapping[str, int]
    ) -> None:
        """Compare the annotations of one image; None for an image that failed.

        Args:
            found: the annotations of the run.
            true: those of people, with masks that were checked, as in `found`.
            names: label -> category, for all labels in `found` that have one.
            numbers: category -> its number, for all categories.
        """
        truth = true.meta["regions"]
        rows = np.zeros(len(truth), TRUE)
        rows["category"] = [numbers[region["label"]] for region in truth]
        rows["crowd"] = [region["crowd"] for region in truth]
        rows["area"] = _areas(truth)
        for name in ("box_iou", "mask_iou", "patch_iou"):
            rows[name] = np.nan
        self.true.append(rows)
        wanted = {region["label"] for region in truth}
        tags = {names[tag["label"]].category for tag in found.meta["tags"] if tag["label"] in names} if found else set()
        labels = {names[r["label"]].category for r in found.meta["regions"] if r["label"] in names} if found else set()
        for what, given in (("tags", tags), ("labels", labels)):
            self.by_image[what] += [len(given & wanted), len(given), len(wanted)]
        if found is None:  # the fate 0 is "image failed"
            return
        order = np.argsort([-region["score"] for region in found.meta["regions"]], kind="stable")
        regions = [found.meta["regions"][number] for number in order]
        mine = np.zeros(len(regions), FOUND)
        mine["category"] = [numbers[names[r["label"]].category] if r["label"] in names else NONE for r in regions]
        for name in MEASURES[:3]:
            mine[name] = [region[name] for region in regions]
        coverage = found.coverage[order]
        mine["patches"] = coverage.sum((1, 2), dtype=np.int64) / 255
        mine["area"] = _areas(regions)
        self.found.append(mine)
        ious = {"box": box_ious(regions, truth), "mask": mask_ious(regions, truth)}
        same = mine["category"][:, None] == rows["category"][None]
        matched = self._match(mine, rows["crowd"], ious, same)
        tagged = np.array([region["label"] in tags for region in truth], bool)
        self._judge(mine, rows, ious, same, matched, tagged)
        for number, chosen in enumerate(matched):
            if chosen != NONE and not rows["crowd"][chosen]:
                for kind in ("box", "mask"):
                    rows[f"{kind}_iou"][chosen] = ious[kind][number, chosen]
                rows["patch_iou"][chosen] = patch_iou(coverage[number], true.coverage[chosen])
        self._try_cuts(mine, ious["mask"], same, rows["crowd"])

    def _match(
        self, mine: np.ndarray, crowd: np.ndarray, ious: Mapping[str, np.ndarray], same: np.ndarray
    ) -> np.ndarray:
        """Set the bits of matches, and return the match of each box at the first of `IOUS`."""
        first = np.full(len(mine), NONE)
        for kind in ("mask", "box"):
            for bit, least in enumerate(IOUS):
                matched = match(ious[kind], same, crowd, least)
                of_crowd = (matched != NONE) & np.append(crowd, False)[matched]
                mine[f"{kind}_hits"] |= ((matched != NONE) & ~of_crowd).astype(np.uint16) << bit
                mine[f"{kind}_crowds"] |= of_crowd.astype(np.uint16) << bit
                first = matched if bit == 0 else first
        return first

    def _judge(
        self, mine: np.ndarray, rows: np.ndarray, ious: Mapping[str, np.ndarray], same: np.ndarray, matched: np.ndarray,
        tagged: np.ndarray,
    ) -> None:  # fmt: skip
        """Set the fates of found and true regions, by the matches of their boxes."""
        place = (ious["box"] >= IOUS[0]) & ~rows["crowd"]
        single = (matched != NONE) & ~np.append(rows["crowd"], False)[matched]
        sharp = np.zeros(len(mine), bool)
        sharp[single] = ious["mask"][single, matched[single]] >= IOUS[0]
        free = ~single  # among them regions without a category
        lost = np.ones(len(rows), bool)
        lost[matched[single]] = False
        mine["fate"] = _first(
            FOUND_FATES,
            {
                "no category": mine["category"] == NONE,
                "right": single & sharp,
                "poor mask": single,
                "of a crowd": matched != NONE,
                "found twice": (place & same).any(1),
                "another label": (place & ~same & lost).any(1),
                "misplaced": ((ious["box"] >= NEAR) & same).any(1),
                "on nothing": np.ones(len(mine), bool),
            },
        )
        clear = np.zeros(len(rows), bool)
        clear[matched[single & sharp]] = True
        rows["fate"] = _first(
            TRUE_FATES,
            {
                "found": clear,
                "poor mask": ~lost,
                "not tagged": ~tagged,
                "another label": (place & ~same & free[:, None]).any(0),
                "no box": np.ones(len(rows), bool),
            },
        )

    def _try_cuts(self, mine: np.ndarray, ious: np.ndarray, same: np.ndarray, crowd: np.ndarray) -> None:
        """Count what stays, and what is right, at each cut. A region that is cut frees its true region for another."""
        known = mine["category"] != NONE
        for name, cuts in CUTS.items():
            last = np.maximum(np.searchsorted(cuts, mine[name], side="right") - 1, 0)  # the highest cut that it passes
            start = 0
            for stop in np.unique(last[known]):
                stays = known & (last >= stop)
                matched = match(ious, same & stays[:, None], crowd, IOUS[0])
                of_crowd = np.append(crowd, False)[matched] & (matched != NONE)
                self.kept[name][start : stop + 1] += np.count_nonzero(stays & ~of_crowd)
                self.right[name][start : stop + 1] += np.count_nonzero((matched != NONE) & ~of_crowd)
                start = stop + 1

    def merge(self, other: Regions) -> None:
        """Add the regions of further images."""
        self.found += other.found
        self.true += other.true
        for name in CUTS:
            self.kept[name] += other.kept[name]
            self.right[name] += other.right[name]
        for name, counts in other.by_image.items():
            self.by_image[name] += counts

    def joined(self) -> Regions:
        """Return the same regions with one array of each kind, which takes less memory."""
        found = np.concatenate([np.zeros(0, FOUND), *self.found])
        true = np.concatenate([np.zeros(0, TRUE), *self.true])
        return Regions([found], [true], self.kept, self.right, self.by_image)


def _zeros(sizes: Mapping[str, Sized]) -> dict[str, np.ndarray]:
    return {name: np.zeros(len(values), int) for name, values in sizes.items()}


def _areas(regions: Sequence[RegionJson]) -> np.ndarray:
    return np.asarray(coco_mask.area([region["rle"] for region in regions]) if regions else [], float)


def _first(names: Sequence[str], tests: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each item the position in `names` of the first test that it passes; the last test is passed by all."""
    return np.select(list(tests.values()), [names.index(name) for name in tests])


def patch_iou(found: np.ndarray, true: np.ndarray) -> float:
    """Return the soft IoU of two coverages, uint8 `[grid, grid]`: sum(min) / sum(max), 0..1; NaN for slivers."""
    union = int(np.maximum(found, true).sum(dtype=np.int64))
    return float(np.minimum(found, true).sum(dtype=np.int64)) / union if union >= SLIVER * 255 else float("nan")
