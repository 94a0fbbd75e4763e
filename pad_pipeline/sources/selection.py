"""Choose images of finished shards. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.choices import Status

if TYPE_CHECKING:
    from pad_pipeline.shards.reader import ShardFolder


class Selection(BaseModel):
    """The conditions that an image must meet to be taken. By default all images are."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    statuses: frozenset[Status] = frozenset()
    """Take only images with one of these statuses; none takes all."""
    labels: frozenset[str] = frozenset()
    """Take only images with a region of one of these labels; none takes all."""
    ids: frozenset[str] = frozenset()
    """Take only images with one of these ids; none takes all."""
    keys: frozenset[str] = frozenset()
    """Take only images with one of these keys, which are their names in the shards; none takes all."""
    drop_keys: frozenset[str] = frozenset()
    """Leave out the images with these keys."""
    min_regions: int = Field(0, ge=0)
    """Take only images with at least so many regions."""
    min_edge: int = Field(0, ge=0)
    """Take only images whose shorter edge has at least so many pixels, and no failed ones: their size is not known."""

    @property
    def named_keys(self) -> frozenset[str]:
        """The keys of `keys` and `drop_keys`, each of which should be that of an image."""
        return self.keys | self.drop_keys

    def takes(self, shards: ShardFolder, name: str, row: dict[str, Any]) -> bool:
        """Return whether to take the image of an index row. Its sample is only read for a condition on labels."""
        if (
            (self.statuses and row["status"] not in self.statuses)
            or (self.ids and row["id"] not in self.ids)
            or (self.keys and row["key"] not in self.keys)
            or row["key"] in self.drop_keys
            or row["regions"] < self.min_regions
            or (self.min_edge and min(row["width"], row["height"]) < self.min_edge)
        ):
            return False
        if not self.labels or not row["regions"]:
            return not self.labels
        regions = shards.sample(name, row, image=False).meta["regions"]
        return any(region["label"] in self.labels for region in regions)
