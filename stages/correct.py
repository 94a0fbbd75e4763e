"""The stage correct: it replaces the regions of a finished image by those that people corrected in another tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pad_pipeline.records import ImageRecord, Region, Tag
from pad_pipeline.stages.annotate import human_region
from pad_pipeline.stages.base import Stage


class Correct(Stage[None, None]):
    """Sets the regions that `HandedSource` planned for an image that the stage restore has read.

    A region that nobody changed stays to the last bit. A renamed one keeps its box and mask; like each region that
    people drew, it has the score 1 and no alternates.
    """

    name = "correct"
    statuses = frozenset({"ok", "empty"})

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions, in the order of the corrections. The labels of those that people made become tags."""
        before, problems, human = row.regions, [], []
        row.regions = []
        for correction in row.annotations:
            if "kept" in correction and "label" not in correction:
                row.regions.append(before[correction["kept"]])
                continue
            try:
                human.append(_human(correction, before, row))
                row.regions.append(human[-1])
            except ValueError as error:
                problems.append(str(error))
        if problems:
            row.note(self.name, f"{len(problems)} of {len(row.annotations)} annotations are left out: {problems[0]}")
        known = {tag.label.casefold() for tag in row.tags}
        for name in dict.fromkeys(region.label for region in human):
            if name.casefold() not in known:
                row.tags.append(Tag(name, 1.0, ["human"]))
        row.status = "ok" if row.regions else "empty"


def _human(correction: Mapping[str, Any], before: list[Region], row: ImageRecord) -> Region:
    if "kept" not in correction:
        return human_region(row, correction)
    kept = before[correction["kept"]]
    return Region(correction["label"], kept.box, rle=kept.rle, crowd=kept.crowd)
