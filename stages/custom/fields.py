"""Fields of the settings of the user's own models: classes that the models file names."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pad_pipeline.stages.settings import StageSettings

SECTIONS = {"class", "entry_point"}
"""Settings that name a class; a section of a models file that has one of them is for the user's own model."""


class CustomFields(StageSettings):
    """Settings of the user's own model, which replaces one of pad's."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    method: ClassVar[str]
    """The method that the class must have; see `pad_pipeline.stages.custom.protocol`."""

    class_: str = Field("", alias="class")
    """`package.module:Class`; the package must be installed or on PYTHONPATH on each node."""
    entry_point: str = Field("", exclude=True)
    """In place of `class`: the class's name in the entry points of an installed package, in the group `pad.detectors`
    (`pad.taggers`, `pad.segmenters`, `pad.grounders`)."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The values of the class's own `Settings`. Those of type `Path` are relative to the TOML file."""
    code: str = Field("", exclude=True)
    """The result of `code_of` on the machine where the run began; a worker with other code refuses to run."""

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if bool(self.class_) == bool(self.entry_point):
            raise ValueError("either class or entry_point should name it")
        return self

    @model_serializer(mode="wrap")
    def _as_in_toml(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {"class" if name == "class_" else name: value for name, value in values.items()}

    @property
    def field(self) -> str:
        """The setting that names the class, for errors."""
        return f"{self.section}.{'entry_point' if self.entry_point else 'class'}"

    @property
    def code_version(self) -> str:
        """See `StageSettings`."""
        return self.code


class BoxFields(CustomFields):
    """Fields that select which boxes of a user's class are kept; they mean the same as in `DetectorSettings`."""

    nms_iou: float = Field(1.0, ge=0, le=1)
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    min_size: float = Field(1.0, ge=0)


class DetectFields(BoxFields):
    """Fields of a detector."""

    unboxable: str = "default"
    """See `DetectorSettings`."""
