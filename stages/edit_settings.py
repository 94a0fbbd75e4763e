"""What `pad retarget` changes of regions that are there already. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EditSettings(BaseModel):
    """Which regions stay, and under which label. The defaults change nothing."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    label_map: dict[str, str] = {}
    """New name of each label that is renamed, such as {"puppy": "dog"}; an empty name drops the label's regions."""
    keep_labels: list[str] = []
    """Labels, as they are called after the renaming, whose regions stay; empty for all labels."""
    drop_labels: list[str] = []
    """Labels, as they are called after the renaming, whose regions are dropped."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Regions whose box has a lower score are dropped."""
    min_predicted_iou: float | None = Field(None, allow_inf_nan=False)
    """Regions whose mask has a lower predicted IoU are dropped. The segmenter estimates this IoU by regression, so it
    can be below 0 and above 1."""
    nms_iou: float = Field(1.0, ge=0, le=1)
    """Two boxes of one label may overlap up to this IoU; otherwise the one with the lower score is dropped. At 1
    nothing is dropped."""
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    """The same for boxes of any labels, applied afterwards."""

    @property
    def changes(self) -> bool:
        """Whether these settings can change anything."""
        return self != EditSettings()
