"""Settings for changes of existing regions by `pad retarget`. This module imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EditSettings(BaseModel):
    """Settings that rename labels and drop regions. The defaults change nothing."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    label_map: dict[str, str] = {}
    """Old label -> new label, such as {"puppy": "dog"}. An empty new label drops the regions."""
    keep_labels: list[str] = []
    """Only regions with these labels (after the renaming) stay; empty for all labels."""
    drop_labels: list[str] = []
    """Regions with these labels (after the renaming) are dropped."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Regions with a lower box score are dropped."""
    min_label_score: float = Field(0.0, ge=0, le=1)
    """Regions with a lower label score are dropped."""
    min_predicted_iou: float | None = Field(None, allow_inf_nan=False)
    """Regions with a lower predicted IoU of the mask are dropped. The segmenter estimates this IoU by regression; it
    can be below 0 or above 1. SAM 3 makes no such estimate: the IoU of its masks is 1."""
    min_patches: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Regions that cover fewer patches of the new view are dropped. A patch that is half covered counts as a half."""
    nms_iou: float = Field(1.0, ge=0, le=1)
    """If two boxes of one label have a higher IoU, the box with the lower score is dropped. At 1 nothing is dropped."""
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    """The same limit for boxes of any labels, applied afterwards."""

    @property
    def changes(self) -> bool:
        """Whether any setting differs from its default."""
        return self != EditSettings()
