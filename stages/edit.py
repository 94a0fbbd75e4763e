"""Other thresholds, labels and overlaps for regions that are there already: what `pad retarget` changes of them."""

from __future__ import annotations

from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.edit_settings import EditSettings


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
