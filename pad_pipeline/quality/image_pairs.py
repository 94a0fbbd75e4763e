"""Finds the images that two runs have in common."""

from __future__ import annotations

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

    Images are left out, and counted, if they failed in the truth, if several have the name, if the sizes differ, or if
    only one run has them.

    Raises:
        UserError: the runs have no image in common.
    """
    places: dict[str, dict[str, Place | None]] = {name: {} for name in FIELDS}  # None: several images have the name
    for shard, row in truth.rows():
        for name, value_of in FIELDS.items():
            value = value_of(row)
            places[name][value] = None if value in places[name] else Place(shard, row)
    hits = dict.fromkeys(FIELDS, 0)
    for _, row in shards.rows():
        for name, value_of in FIELDS.items():
            hits[name] += places[name].get(value_of(row)) is not None
    common = Common(by=max(FIELDS, key=lambda name: hits[name]))
    if not hits[common.by]:
        first = [next((row["id"] for _, row in run.rows()), "") for run in (shards, truth)]
        rule = f"it has no image in common with the shards: here {first[1]!r} is the first, there {first[0]!r}"
        raise UserError("truth", truth.folder, rule, "name shards of the same images")
    known, value_of = places[common.by], FIELDS[common.by]
    waiting = {name for name, place in known.items() if place is not None}
    return common, list(_pairs(shards, known, value_of, common, waiting))


def _pairs(
    shards: ShardFolder,
    known: dict[str, Place | None],
    value_of: Callable[[IndexRow], str],
    common: Common,
    waiting: set[str],
) -> Iterator[Pairs]:
    taken: set[str] = set()
    for shard in shards.names:
        images = []
        for row in shards.index(shard):
            name = value_of(row)
            if name not in known:
                common.leave_out("only in the shards", name)
            elif (place := known[name]) is None or name in taken:
                common.leave_out(f"with a {common.by} that several images have", name)
            else:
                taken.add(name)
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
