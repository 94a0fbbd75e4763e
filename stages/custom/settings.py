"""What stands in the TOML for a model of the user's own."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class CustomSettings(BaseModel):
    """A model of the user's own, in the place of one of pad's."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    section: ClassVar[str]
    """Of the TOML file."""
    method: ClassVar[str]
    """What the class must be able to do; see `pad_pipeline.stages.custom.protocol`."""

    class_: str = Field("", alias="class")
    """`package.module:Class`, of a package that is installed or on PYTHONPATH, on each node."""
    entry_point: str = Field("", exclude=True)
    """Instead of `class`: the name that an installed package gives it in the entry points' group `pad.detectors`
    (`pad.taggers`, `pad.segmenters`, `pad.grounders`)."""
    settings: dict[str, Any] = {}
    """What the class's own `Settings` are filled from. Those of type `Path` are relative to the TOML file."""
    batch_size: int = Field(8, gt=0)
    """Images in one call."""
    code: str = Field("", exclude=True)
    """What `code_of` says where the run was begun; a worker that finds something else refuses."""

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if bool(self.class_) == bool(self.entry_point):
            raise ValueError("either class or entry_point should name it")
        return self

    @model_serializer(mode="wrap")
    def _as_in_toml(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        return {"class" if name == "class_" else name: value for name, value in found.items()}

    @property
    def field(self) -> str:
        """What names it, for errors."""
        return f"{self.section}.{'entry_point' if self.entry_point else 'class'}"


class CustomTagger(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Tagger`."""

    section, method = "tagger", "tag"


class CustomDetector(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Detector`. The others as in `DetectorSettings`."""

    section, method = "detector", "detect"

    unboxable: str = "default"
    nms_iou: float = Field(1.0, ge=0, le=1)
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    min_size: float = Field(1.0, ge=0)


class CustomSegmenter(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Segmenter`."""

    section, method = "segmenter", "segment"


class CustomGrounder(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Grounder`. It stands for tagger and detector both."""

    section, method = "grounder", "tag_and_ground"

    nms_iou: float = Field(1.0, ge=0, le=1)
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    min_size: float = Field(1.0, ge=0)
