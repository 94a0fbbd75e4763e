"""Images of a run of models, of which some have the regions that people corrected in other runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned, ShardRow
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.sources.stored import StoredSource

_Facts = tuple[str | int, ...]


class _Image(NamedTuple):
    """An image of a run, with the facts by which the same image is found in another run."""

    planned: Planned
    facts: tuple[_Facts, _Facts]
    """Its id, width, height and number of bytes; and these with its path in the source."""
    failed: bool


class CorrectedSource(StoredSource):
    """The images of the first run, in its order; then the images that only a later run has.

    Where a later run has an image of the first run and did not fail with it, its whole sample is taken: regions, tags
    and caption. Of several later runs, the last one counts. Two images are the same if id, size and number of bytes are
    equal. If several images of a run are that alike, their paths in the source decide; if these are equal too, none is
    replaced.

    Raises:
        UserError: there is only one run, or the run of the models is not the first.
    """

    def __init__(self, shards: list[str]) -> None:
        super().__init__(shards)
        if len(self.runs) < 2:
            raise UserError("shards", shards[0], "with `corrections`, there are two runs or more", "name them")
        kinds = [run.run.kind for run in self.runs]
        if kinds[0].startswith("import-") and "build" in kinds[1:]:
            rule = "it is a run of people, and with `corrections`, it would be replaced by a run of models"
            raise UserError("shards", shards[0], rule, "name the run of the models first")
        self.facts = {"corrections": kinds[1:]}

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for run in self.runs:
            self._note_unfinished(run)
        first, *later = self.runs
        corrections = [[*self._usable(run)] for run in later]
        wanted = {image.facts[0] for images in corrections for image in images}
        count: Counter[_Facts] = Counter()
        known: dict[_Facts, ShardRow] = {}
        for image in self._images(first):
            if image.facts[0] in wanted:
                count.update(image.facts)
                known |= dict.fromkeys(image.facts, image.planned.place)  # type: ignore[arg-type]
        replaced: dict[object, tuple[str, Planned]] = {}
        added: list[Planned] = []
        for number, (run, images) in enumerate(zip(later, corrections, strict=True), 2):
            own = Counter(facts for image in images for facts in image.facts)
            for image in images:
                place = next((known[facts] for facts in image.facts if count[facts] == own[facts] == 1), None)
                if place is not None:
                    replaced[place] = _name(number, run), image.planned
                else:
                    kind = "corrected images that the first run does not have, or not only once, which are added"
                    self.counts.note(kind, image.planned.source)
                    added.append(image.planned)
        for image in self._images(first):
            name, planned = replaced.get(image.planned.place, (_name(1, first), image.planned))
            self.counts[f"images with the regions of {name}"] += 1
            yield planned
        yield from added

    def _usable(self, run: ShardFolder) -> Iterator[_Image]:
        """Yield the images that did not fail; count those that did."""
        for image in self._images(run):
            if image.failed:
                self.counts.note("corrected images that failed, so that others' regions stay", image.planned.source)
            else:
                yield image

    def _images(self, run: ShardFolder) -> Iterator[_Image]:
        prefix = self._prefix(run)
        for name in run.names:
            for number, row in enumerate(run.index(name)):
                place = ShardRow(f"{prefix}{name}.parquet", number, max(row["image_bytes"], 0))
                planned = Planned(row["id"], row["source"], place=place, sample_sha256=row["sha256"])
                facts = (row["id"], row["width"], row["height"], row["image_bytes"])
                yield _Image(planned, (facts, (*facts, row["source"])), row["status"] == "failed")


def _name(number: int, run: ShardFolder) -> str:
    return f"run {number}, {Path(str(run.folder)).name} ({run.run.kind})"
