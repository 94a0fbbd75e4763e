"""A folder of PAD shards: to annotate its images again, from whichever stage on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pad_pipeline.errors import rename_field
from pad_pipeline.records import Place, Planned
from pad_pipeline.storage import Folder


class ShardsSource:
    """The images of every finished shard, in plan order, with the place of what was found in them.

    Raises:
        UserError: no shard in it is finished.
    """

    def __init__(self, images: Folder) -> None:
        from pad_pipeline.shards.reader import open_shards

        with rename_field(shards="images"):
            self.shards = open_shards(images)
        self.origin = str(self.shards.folder)
        self.root = self.origin if self.shards.folder.remote else str(Path(self.origin).resolve())
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Planned]:
        """What failed there has nothing to begin with here: it fails with its old reason."""
        unfinished = self.shards.run.shards - len(self.shards.names)
        if unfinished:
            self.counts["shards that are not finished"] = unfinished
        for name, row in self.shards.rows():
            problem = f"it failed before, in {row['stage']}: {row['reason']}" if row["status"] == "failed" else ""
            yield Planned(
                row["id"],
                row["source"],
                place=Place(f"{name}.tar", row["image_at"], row["image_bytes"]),
                earlier=Place(f"{name}.tar", row["json_at"], row["json_bytes"]),
                sample_sha256=row["sha256"],
                problem=problem,
            )
