"""Settings of the user's own models: classes that the models file names."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pad_pipeline.errors import UserError
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile

if TYPE_CHECKING:
    from pad_pipeline.images import DecodeSettings
    from pad_pipeline.stages.base import Stage
    from pad_pipeline.stages.compute import ComputeSettings

SECTIONS = {"class", "entry_point"}
"""Settings that name a class; a section of a models file that has one of them is for the user's own model."""


class CustomSettings(StageSettings):
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

    def files(self) -> list[ModelFile]:
        """Return the module of the class, and each file that a setting of type `Path` names."""
        from pad_pipeline.stages.custom.load import files, module_file

        named = [ModelFile(f"{self.section}.settings.{name}", str(path)) for name, path in files(self).items()]
        return [ModelFile(self.field, self.code or self.class_, code=module_file(self)), *named]

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`, and `fingerprints` in `pad_pipeline.stages.custom.load`."""
        from pad_pipeline.stages.custom.load import fingerprints

        return fingerprints(self)

    def check(self) -> str:
        """Make the model and run it on a gray image, which shows most violations of the protocol."""
        from PIL import Image

        from pad_pipeline.images import DecodeSettings
        from pad_pipeline.records import ImageRecord, Region, Shard, Tag
        from pad_pipeline.stages.compute import ComputeSettings

        row = ImageRecord("check", "check", key="check", width=64, height=48)
        with io.BytesIO() as sink:
            Image.new("RGB", (row.width, row.height), "gray").save(sink, "PNG")
            row.data, row.format = sink.getvalue(), "PNG"
        row.tags, row.regions = [Tag("thing", 1.0)], [Region("thing", (8.0, 8.0, 40.0, 40.0))]
        self.make(DecodeSettings(), ComputeSettings(precision="float32"))(Shard(0, [row]))
        if row.status == "failed":
            rule = f"asked about a gray image, it fails ({row.reason})"
            raise UserError(self.field, self.class_, rule, "mend the class")
        return ", ".join([self.code, *(f"{name} {value}" for name, value in self.fingerprints().items())])


class CustomTagger(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Tagger`."""

    section, method = "tagger", "tag"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make a `TagStage`."""
        from pad_pipeline.stages.custom.stages import TagStage

        return TagStage(self, decoding, compute)


class CustomBoxes(CustomSettings):
    """Settings that select which boxes of a user's class are kept; they mean the same as in `DetectorSettings`."""

    nms_iou: float = Field(1.0, ge=0, le=1)
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    min_size: float = Field(1.0, ge=0)


class CustomDetector(CustomBoxes):
    """See `pad_pipeline.stages.custom.protocol.Detector`."""

    section, method, paths = "detector", "detect", ("unboxable",)

    unboxable: str = "default"

    def files(self) -> list[ModelFile]:
        """Return the files of `CustomSettings`, and the list of tags that are not looked for."""
        from pad_pipeline.stages.ground import unboxable_files

        return super().files() + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """Return the hashes of `CustomSettings`, and that of the list of tags that are not looked for."""
        from pad_pipeline.stages.ground import unboxable_fingerprint

        return super().fingerprints() | unboxable_fingerprint(self.unboxable)

    def check(self) -> str:
        """See `CustomSettings`. No tag is left out here, so that the detector always runs."""
        everything = self.model_copy(update={"unboxable": ""})
        return super(CustomDetector, everything).check()

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make a `DetectStage`."""
        from pad_pipeline.stages.custom.stages import DetectStage

        return DetectStage(self, decoding, compute)


class CustomSegmenter(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Segmenter`."""

    section, method = "segmenter", "segment"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make a `SegmentStage`."""
        from pad_pipeline.stages.custom.stages import SegmentStage

        return SegmentStage(self, decoding, compute)


class CustomGrounder(CustomBoxes):
    """See `pad_pipeline.stages.custom.protocol.Grounder`. A grounder does the steps of a tagger and of a detector."""

    section, method = "grounder", "tag_and_ground"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make a `GroundStage`."""
        from pad_pipeline.stages.custom.stages import GroundStage

        return GroundStage(self, decoding, compute)
