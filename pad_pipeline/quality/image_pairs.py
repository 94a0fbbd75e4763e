"""Finds the images that two runs have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.records import IndexRow
from pad_pipeline.shards.reader import ShardFolder

FIELDS: dict[str, Callable[[IndexRow], str]] = {
    "key": lambda row: str(row["key"]),
    "id": lambda row: str(row["id"]),
    "source": lambda row: str(row["source"]),
    "file name": lambda row: PurePosixPath(str(row["source"])).stem,
}
"""What may name the same image in both runs: columns of the index, and the file name without folder and ending."""
EXAMPLES = 3


class Place(NamedTuple):
    """An image in a run: the name of its shard, and its index row."""

    shard: str
    row: IndexRow


class Pairs(NamedTuple):
    """The images of one shard that the truth has too."""

    shard: str
    images: list[tuple[IndexRow, Place]]
    """The index row of each, and its place in the truth."""


@dataclass
class Common:
    """Which images are compared, and which are not. Counts have up to `EXAMPLES` names each."""

    by: str = ""
    """The name in `FIELDS` by which images were found."""
    images: int = 0
    left_out: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """Reason -> the number of images, and examples."""

    def leave_out(self, reason: str, name: str) -> None:
        """Count an image that is not compared."""
        number, names = self.left_out.get(reason, (0, []))
        self.left_out[reason] = number + 1, [*names, name] if len(names) < EXAMPLES else names


def find_pairs(shards: ShardFolder, truth: ShardFolder) -> tuple[Common, list[Pairs]]:
    """Find the images of `shards` that `truth` has too, by the first of `FIELDS` that finds the most.

    Only a name that one image has in each run counts. Images are left out, and counted, if several have the name, if
    they failed in the truth, if the sizes differ, or if only one run has them.

    Raises:
        UserError: the runs have no image in common that can be compared.
    """
    places: dict[str, dict[str, Place | None]] = {name: {} for name in FIELDS}  # None: several images have the name
    for shard, row in truth.rows():
        for name, value_of in FIELDS.items():
            value = value_of(row)
            places[name][value] = None if value in places[name] else Place(shard, row)
    times: dict[str, Counter[str]] = {name: Counter() for name in FIELDS}
    for _, row in shards.rows():
        for name, value_of in FIELDS.items():
            if (value := value_of(row)) in places[name]:
                times[name][value] += 1
    for name, known in places.items():
        for value, number in times[name].items():
            if number > 1:
                known[value] = None
    hits = {name: sum(known[value] is not None for value in times[name]) for name, known in places.items()}
    common = Common(by=max(FIELDS, key=lambda name: hits[name]))
    if not hits[common.by]:
        first = [next((row["id"] for _, row in run.rows()), "") for run in (shards, truth)]
        rule = f"it has no image in common with the shards: here {first[1]!r} is the first, there {first[0]!r}"
        raise UserError("truth", truth.folder, rule, "name shards of the same images")
    pairs = list(_pairs(shards, places[common.by], common))
    if not pairs:
        reasons = "; ".join(f"{number:,} {reason}" for reason, (number, _) in common.left_out.items())
        rule = f"none of the images that it has in common with the shards can be compared: {reasons}"
        raise UserError("truth", truth.folder, rule, "name shards of the same images")
    return common, pairs


def _pairs(shards: ShardFolder, known: dict[str, Place | None], common: Common) -> Iterator[Pairs]:
    waiting = {name for name, place in known.items() if place is not None}
    value_of = FIELDS[common.by]
    for shard in shards.names:
        images = []
        for row in shards.index(shard):
            name = value_of(row)
            if name not in known:
                common.leave_out("only in the shards", name)
            elif (place := known[name]) is None:
                common.leave_out(f"whose {common.by} several images have", name)
            else:
                waiting.discard(name)
                failed = row["status"] == "failed"
                if place.row["status"] == "failed":
                    common.leave_out("failed in the truth", name)
                elif not failed and any(row[edge] != place.row[edge] for edge in ("width", "height")):
                    common.leave_out("of another size in the truth", name)
                else:
                    images.append((row, place))
                    common.images += 1
        if images:
            yield Pairs(shard, images)
    for name in sorted(waiting):
        common.leave_out("only in the truth", name)
