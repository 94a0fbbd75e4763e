"""The stage edit: `pad retarget` changes existing regions by thresholds, labels and overlaps."""

from __future__ import annotations

from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.edit_settings import EditSettings


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
