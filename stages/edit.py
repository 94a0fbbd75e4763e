"""The stage edit: `pad retarget` changes existing regions by thresholds, labels and overlaps."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress


class EditSettings(BaseModel):
    """Which regions stay, and under which label. The defaults change nothing."""

    model_config = ConfigDict(extra="forbid")

    label_map: dict[str, str] = {}
    """New name of each label that is renamed; an empty name drops the label's regions."""
    keep_labels: list[str] = []
    """Labels, as they are called after the renaming, whose regions stay; empty for all labels."""
    drop_labels: list[str] = []
    """Labels, as they are called after the renaming, whose regions are dropped."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Regions whose box has a lower score are dropped."""
    min_predicted_iou: float | None = Field(None, allow_inf_nan=False)
    """Regions whose mask has a lower predicted IoU are dropped; None drops none. The segmenter estimates this IoU by
    regression, so it can be below 0 and above 1."""
    nms_iou: float = Field(1.0, ge=0, le=1)
    """Two boxes of one label may overlap up to this IoU; otherwise the one with the lower score is dropped. At 1
    nothing is dropped."""
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    """The same for boxes of any labels, applied afterwards."""

    @property
    def changes(self) -> bool:
        """Whether these settings can change anything."""
        return self != EditSettings()


class Edit(Stage[None, None]):
    """Renames labels, then filters regions, then suppresses overlaps; tags stay, as a record of the tagger's output."""

    name = "edit"

    def __init__(self, settings: EditSettings) -> None:
        super().__init__()
        self.settings = settings
        self.kept, self.dropped = frozenset(settings.keep_labels), frozenset(settings.drop_labels)

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions that stay; an image without any becomes `empty`."""
        regions = [region for region in map(self._rename, row.regions) if self._stays(region)]
        least = min(self.settings.nms_iou, self.settings.nms_iou_across_labels)
        if least < 1:  # `suppress` also sorts, which would change the order of regions
            regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        row.regions = regions
        if not regions:
            row.status = "empty"

    def _rename(self, region: Region) -> Region:
        """Rename the label and the alternates of a region, in place, and return it.

        Dropped are alternates that now have the name of the label or of an earlier alternate, or are not wanted.
        """
        new_names = self.settings.label_map
        region.label = new_names.get(region.label, region.label)
        seen = {region.label, ""}
        others = []
        for other in region.alternates:
            other.label = new_names.get(other.label, other.label)
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
