"""What `pad retarget` changes of regions that are there already. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EditSettings(BaseModel):
    """Which regions stay, and under which label. As it is, nothing is changed."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    label_map: dict[str, str] = {}
    """New names of labels, such as {"puppy": "dog"}; an empty name drops the label's regions."""
    keep_labels: list[str] = []
    """Keep only regions of these labels, by their names after `label_map`; none keeps all."""
    drop_labels: list[str] = []
    """Drop the regions of these labels, by their names after `label_map`."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Drop regions whose box has a lower score."""
    min_predicted_iou: float | None = Field(None, allow_inf_nan=False)
    """Drop regions whose mask the segmenter rates lower (its estimate of the IoU, which can be below 0 or above 1)."""
    nms_iou: float = Field(1.0, ge=0, le=1)
    """Where two boxes of one label overlap more (IoU), drop the one with the lower score; 1 keeps both."""
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    """The same for two boxes of any labels, afterwards."""

    @property
    def changes(self) -> bool:
        """Whether anything can come out otherwise than it went in."""
        return self != EditSettings()
