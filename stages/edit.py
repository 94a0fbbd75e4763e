"""The stage edit: it renames labels and drops regions, for `pad retarget`."""

from __future__ import annotations

from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.records import Alternate, ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.edit_settings import EditSettings


class Edit(Stage[None, None]):
    """Renames labels, then filters regions, then drops overlapping regions. The tags stay as the tagger gave them."""

    name = "edit"

    def __init__(self, settings: EditSettings, view: View) -> None:
        super().__init__()
        self.settings, self.view = settings, view
        self.kept, self.dropped = frozenset(settings.keep_labels), frozenset(settings.drop_labels)

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions that stay. An image without regions becomes `empty`."""
        settings = self.settings
        row.regions = [region for region in map(self._rename, row.regions) if self._stays(region)]
        if min(settings.nms_iou, settings.nms_iou_across_labels) < 1:  # `suppress` also changes the order of regions
            row.regions = suppress(row.regions, settings.nms_iou, settings.nms_iou_across_labels)
        row.status = "ok" if row.regions else "empty"

    def _rename(self, region: Region) -> Region:
        """Rename the label and the alternates of a region, in place, and return the region.

        Drop alternates that equal the label or an earlier alternate, and those that the settings drop.
        """
        names = self.settings.label_map
        region.label = names.get(region.label, region.label)
        others: dict[str, Alternate] = {}
        for other in region.alternates:
            other.label = names.get(other.label, other.label)
            if other.label != region.label and self._wanted(other.label):
                others.setdefault(other.label, other)
        region.alternates = [*others.values()]
        return region

    def _wanted(self, label: str) -> bool:
        return bool(label) and (not self.kept or label in self.kept) and label not in self.dropped

    def _stays(self, region: Region) -> bool:
        least = self.settings.min_predicted_iou
        if least is not None and region.predicted_iou < least:
            return False
        if region.score < self.settings.min_score or region.label_score < self.settings.min_label_score:
            return False
        if not self._wanted(region.label):
            return False
        if self.settings.min_patches:
            patches = self.view.coverage(coco_mask.decode(region.rle)).sum(dtype=int) / 255
            return bool(patches >= self.settings.min_patches)
        return True
