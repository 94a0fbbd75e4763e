"""The kinds of the user's own models: their settings, their check, and the stages that are made of them."""

from __future__ import annotations

import io
from typing import ClassVar

from PIL import Image

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from pad_pipeline.stages.box_stage import unboxable_files, unboxable_fingerprint
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.load import BoxFields, CustomFields, DetectFields
from pad_pipeline.stages.custom.stages import CustomStage, DetectStage, GroundStage, SegmentStage, TagStage
from pad_pipeline.weights import ModelFile


class CustomSettings(CustomFields):
    """Settings of a model of the user's own, which replaces one of pad's."""

    stage: ClassVar[type[CustomStage]]
    """The stage that holds the model."""

    def check(self) -> str:
        """Make the model and run it on a gray image, which shows most violations of the protocol."""
        row = ImageRecord("check", "check", key="check", width=64, height=48)
        with io.BytesIO() as sink:
            Image.new("RGB", (row.width, row.height), "gray").save(sink, "PNG")
            row.data, row.format = sink.getvalue(), "PNG"
        row.tags, row.regions = [Tag("thing", 1.0)], [Region("thing", (8.0, 8.0, 40.0, 40.0))]
        self.make(DecodeSettings(), ComputeSettings(precision="float32"))(Shard(0, [row]))
        if row.status == "failed":
            rule = f"asked about a gray image, it fails ({row.reason})"
            raise self.error(rule, "repair the class")
        return ", ".join([self.code, *(f"{name} {value}" for name, value in self.fingerprints().items())])

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> CustomStage:
        """Make the stage, with an instance of the class."""
        return self.stage(self, decoding, compute)


class CustomTagger(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Tagger`."""

    section, method, stage = "tagger", "tag", TagStage


class CustomDetector(DetectFields, CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Detector`."""

    section, method, stage, paths = "detector", "detect", DetectStage, ("unboxable",)

    def files(self) -> list[ModelFile]:
        """Return the files of `CustomSettings`, and the list of tags that are not looked for."""
        return super().files() + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """Return the hashes of `CustomSettings`, and that of the list of tags that are not looked for."""
        return super().fingerprints() | unboxable_fingerprint(self.unboxable)

    def check(self) -> str:
        """See `CustomSettings`. No tag is left out here, so that the detector always runs."""
        everything = self.model_copy(update={"unboxable": ""})
        return super(CustomDetector, everything).check()


class CustomSegmenter(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Segmenter`."""

    section, method, stage = "segmenter", "segment", SegmentStage


class CustomGrounder(BoxFields, CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Grounder`. A grounder does the steps of a tagger and of a detector."""

    section, method, stage = "grounder", "tag_and_ground", GroundStage
