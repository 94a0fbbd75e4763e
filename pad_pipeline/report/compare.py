"""Compares a run with a second run, image by image: which regions are only in one of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.records import IndexRow
from pad_pipeline.report.cards import Card, Measure, content_of
from pad_pipeline.shards.reader import ShardFolder, open_shards

SAME = 0.5
"""The lowest IoU of two boxes of one label that count as the same region."""


class Comparison(NamedTuple):
    """The regions of an image that are only in one run."""

    card: Card
    """The card of the first run. Its data has the second run's regions too, and marks those that are only in one."""
    only: list[bool]
    """Whether each region of the first run is not in the second."""
    second: list[Measure]
    """The regions of the second run that are not in the first."""


class SecondRun:
    """Finds images of the first run in a second run, by key, or else by id."""

    def __init__(self, shards: ShardFolder) -> None:
        self.shards = shards

    def find(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, IndexRow] | None]:
        """Find the images of the first run's shard `name`, given by their rows: shard and row in the second run.

        The shard of the same name is read first. Memory grows with the second run's images only if an image is not in
        it: that is if the runs have different plans.
        """
        near: dict[str, IndexRow] = {}
        if self.shards.folder.has(f"{name}.parquet"):
            near = {row["key"]: row for row in self.shards.index(name)}
        return [(name, near[row["key"]]) if row["key"] in near else self._far(row) for row in rows]

    def _far(self, row: Mapping[str, Any]) -> tuple[str, IndexRow] | None:
        keys, ids = _places(str(self.shards.folder))
        place = keys.get(row["key"]) or ids.get(row["id"])
        return (place[0], _rows(str(self.shards.folder), place[0])[place[1]]) if place else None

    def compare(self, card: Card, found: tuple[str, IndexRow] | None) -> Comparison:
        """Compare a card with the image of the second run. An image that is missing there, that failed in one of the
        runs, or that has another size there is not compared."""
        data, nothing = card.data, [False] * len(card.measures)
        if found is None or "failed" in (data["status"], found[1]["status"]):
            reason = "not in the second run" if found is None else "failed in one of the runs"
            return Comparison(card.with_data({"second": {"missing": reason}}), nothing, [])
        name, row = found
        sample = self.shards.sample(name, row, image=False)
        try:
            content, measures = content_of(sample, self.shards.run.view)
        except Exception as error:  # every exception here is caused by damaged bytes
            rule = f"{row['key']} in it is damaged ({type(error).__name__}: {error})"
            remedy = f"see `pad verify {self.shards.folder}` with `deep`"
            raise UserError("shards", f"{self.shards.folder}/{name}.tar", rule, remedy) from error
        if (content["width"], content["height"]) != (data["width"], data["height"]):
            missing = {"missing": "an image of another size in the second run"}
            return Comparison(card.with_data({"second": missing}), nothing, [])
        first, second = data["regions"], content["regions"]
        only, only_second = alone(first, second), alone(second, first)
        for region, mark in zip([*first, *second], [*only, *only_second], strict=True):
            region["only"] = mark
        shown = {"grid": content["grid"], "regions": second}
        extra = [measure for measure, mark in zip(measures, only_second, strict=True) if mark]
        return Comparison(card.with_data({"second": shown}), only, extra)


def alone(regions: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return for each region whether no other one has the same label and a box with an IoU of at least `SAME`."""
    return [
        not any(other["label"] == region["label"] and iou(region["box"], other["box"]) >= SAME for other in others)
        for region in regions
    ]


_Place = tuple[str, int]
"""A shard, and the position of an image in its index."""


@lru_cache(maxsize=1)
def _places(folder: str) -> tuple[dict[str, _Place], dict[str, _Place]]:
    """Return the places of a run's images by key, and by id."""
    shards = open_shards(folder)
    keys: dict[str, _Place] = {}
    ids: dict[str, _Place] = {}
    for name in shards.names:
        for position, row in enumerate(shards.index(name)):
            keys[row["key"]] = name, position
            ids.setdefault(row["id"], (name, position))
    return keys, ids


@lru_cache(maxsize=4)
def _rows(folder: str, name: str) -> list[IndexRow]:
    return ShardFolder(folder).index(name)
