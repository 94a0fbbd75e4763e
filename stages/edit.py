"""Other thresholds, labels and overlaps for regions that are there already: what `pad retarget` changes of them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress


class EditSettings(BaseModel):
    """Which regions stay, and under which label. As it is, nothing is changed."""

    model_config = ConfigDict(extra="forbid")

    label_map: dict[str, str] = {}
    """Label -> its new name; an empty name drops it. Others stay as they are."""
    keep_labels: list[str] = []
    """Only regions of these labels stay, as they are called after the mapping; empty for all."""
    drop_labels: list[str] = []
    """Regions of these go."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Regions whose box has a lower score go."""
    min_predicted_iou: float | None = Field(None, allow_inf_nan=False)
    """Regions whose mask the segmenter thinks less of go; None for none. (An estimate by regression: it can be below 0
    and above 1.)"""
    nms_iou: float = Field(1.0, ge=0, le=1)
    """Of two boxes of one label that overlap more, the one with the lower score goes; 1 keeps both."""
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    """The same whatever their labels, afterwards."""

    @property
    def changes(self) -> bool:
        """Whether anything can come out otherwise than it went in."""
        return self != EditSettings()


class Edit(Stage):
    """Maps labels, then filters, then suppresses overlaps. Tags stay: they are what the tagger said of the image."""

    name = "edit"

    def __init__(self, settings: EditSettings) -> None:
        super().__init__()
        self.settings = settings
        self.kept, self.dropped = frozenset(settings.keep_labels), frozenset(settings.drop_labels)

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions that stay; an image that has none is `empty`."""
        regions = [region for region in map(self._renamed, row.regions) if self._stays(region)]
        least = min(self.settings.nms_iou, self.settings.nms_iou_across_labels)
        if least < 1:  # it sorts too, and an image's regions have their order
            regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        row.regions = regions
        if not regions:
            row.status = "empty"

    def _renamed(self, region: Region) -> Region:
        """With the new names; an alternate that has become the label, or another alternate, or is dropped, goes."""
        named = self.settings.label_map
        region.label = named.get(region.label, region.label)
        seen = {region.label, ""}
        others = []
        for other in region.alternates:
            other.label = named.get(other.label, other.label)
            if other.label not in seen and self._wanted(other.label):
                seen.add(other.label)
                others.append(other)
        region.alternates = others
        return region

    def _wanted(self, label: str) -> bool:
        return bool(label) and (not self.kept or label in self.kept) and label not in self.dropped

    def _stays(self, region: Region) -> bool:
        settings = self.settings
        if settings.min_predicted_iou is not None and region.predicted_iou < settings.min_predicted_iou:
            return False
        return region.score >= settings.min_score and self._wanted(region.label)
