"""Stages that run the user's own models, with the batches, failures and retries of pad's, and check every answer.

The settings that a models file has for each kind of model stand below the stages.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from pydantic import Field

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region, Tag, as_box
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.box_stage import load_unboxable, unboxable_files, unboxable_fingerprint
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.compute import Compute, ComputeSettings
from pad_pipeline.stages.custom.load import CustomSettings
from pad_pipeline.stages.custom.protocol import Detection
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.segment import encode_mask
from pad_pipeline.stages.spans import normalize
from pad_pipeline.weights import ModelFile

STICKS_OUT = 1.0
"""Pixels by which a box may exceed the image."""


class BadAnswer(ValueError):
    """A user's model returned something that the protocol does not allow."""


class CustomStage(Stage[np.ndarray, Any]):
    """Base of the four stages: it gives images to the model as arrays, and checks that each image has an answer."""

    def __init__(self, settings: CustomSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        Compute(compute)  # sets torch's number of threads and precision of float32, for models that use torch
        self.model = settings.load(compute)
        self.ask = getattr(self.model, settings.method)

    def bad(self, given: str, wanted: str) -> BadAnswer:
        """Return an error that says what the model gives, and what it should be."""
        return BadAnswer(f"the {self.settings.section} gives {given}; it should be {wanted}")

    def shape(self, row: ImageRecord) -> tuple[int, ...]:
        """Return what the model's `bucket` returns for the image's size."""
        if not hasattr(self.model, "bucket"):
            return ()
        return tuple(int(part) for part in self.model.bucket(row.width, row.height))

    def prepare(self, row: ImageRecord) -> np.ndarray:
        """Return the image, uint8 `[H, W, 3]`, read-only, because a batch may be tried again."""
        pixels = np.array(image(row, self.decoding), np.uint8)
        pixels.flags.writeable = False
        return pixels

    def answers(self, *questions: list[Any]) -> list[Any]:
        """Call the model on a batch and return its answers, one for each image."""
        answers, count = self.ask(*questions), len(questions[0])
        if not isinstance(answers, (list, tuple)):
            raise self.bad(f"a {type(answers).__name__} for {count} images", "a list of as many")
        if len(answers) != count:
            raise self.bad(f"{len(answers)} answers for {count} images", "a list of as many")
        return list(answers)

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the model's answer for each row."""
        return self.answers(inputs)

    def pairs(self, answer: Any, of: str) -> list[Any]:
        """Check that the answer for an image is a list, and return it; the error says what it should be a list `of`."""
        if not isinstance(answer, (list, tuple)):
            raise self.bad(f"a {type(answer).__name__} for an image", f"a list of {of}")
        return list(answer)

    def number(self, value: Any, what: str) -> float:
        """Check that a score is finite and 0..1, and return it; the error says `what` has this score."""
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not 0 <= score <= 1:
            raise self.bad(f"{what} the score {value!r}", "a number from 0 to 1")
        return score

    def name_of(self, value: object) -> str:
        """Check that a label is text on one line and not empty, and return it."""
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            raise self.bad(f"the label {value!r}", "words with single spaces between")
        return value


class TagStage(CustomStage):
    """Runs the user's own tagger."""

    name = "tag"

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's tags, in the model's order; an image without tags is `empty`."""
        tags = []
        for pair in self.pairs(output, "(name, score)"):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise self.bad(f"the tag {pair!r}", "(name, score)")
            tags.append(Tag(self.name_of(pair[0]), self.number(pair[1], repr(pair[0]))))
        if len({tag.label for tag in tags}) < len(tags):
            raise BadAnswer("the tagger gives a name twice")
        row.tags = tags
        row.status = "ok" if tags else "empty"


class BoxesStage(CustomStage):
    """Base of the two stages whose model returns boxes: detector and grounder."""

    name = "ground"
    settings: CustomBoxSettings

    def set_regions(self, row: ImageRecord, output: Any, asked: Container[str] | None = None) -> None:
        """Set the row's regions, best score first; an image without a box is `empty`.

        `output` has the model's boxes, not checked yet. Their labels must be in `asked`; by default any may occur.
        """
        regions = [self._region(row, detection) for detection in self.pairs(output, "Detection")]
        for region in regions:
            if asked is not None and region.label not in asked:
                who = self.settings.section
                raise BadAnswer(f"the {who} gives the label {region.label!r}, which was not asked for")
        least = self.settings.min_size
        regions = [r for r in regions if min(r.box[2] - r.box[0], r.box[3] - r.box[1]) >= least]
        row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        row.status = "ok" if row.regions else "empty"

    def _region(self, row: ImageRecord, detection: Any) -> Region:
        try:
            label, score, xyxy = Detection(*detection)
            edges = np.array([float(edge) for edge in xyxy])
            if edges.shape != (4,):
                raise ValueError(f"{len(edges)} edges")
        except (TypeError, ValueError) as error:
            raise self.bad(repr(detection), "Detection(label, score, xyxy)") from error
        label, score = self.name_of(label), self.number(score, repr(label))
        size = np.array([row.width, row.height] * 2)
        inside = np.isfinite(edges).all() and (edges >= -STICKS_OUT).all() and (edges <= size + STICKS_OUT).all()
        if not inside or (edges[2:] < edges[:2]).any():
            wanted = f"x0 <= x1, y0 <= y1 in pixels of the {row.width} x {row.height} image"
            raise self.bad(f"{label!r} the box {edges.tolist()}", wanted)
        return Region(label, as_box(edges.clip(0, size)), score=score, label_score=score)


class DetectStage(BoxesStage):
    """Runs the user's own detector."""

    def __init__(self, settings: CustomDetector, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding, compute)
        self.unboxable = load_unboxable(settings.unboxable)

    def asked(self, row: ImageRecord) -> list[str]:
        """Return the labels that are looked for: the row's tags without those that can't be boxed."""
        tags = dict.fromkeys(tag.label for tag in row.tags)
        return [label for label in tags if normalize(label) not in self.unboxable]

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the boxes of each row. The model does not get images without a label to look for."""
        labels = [self.asked(row) for row in rows]
        asked = [index for index, row_labels in enumerate(labels) if row_labels]
        answers = self.answers([inputs[i] for i in asked], [labels[i] for i in asked]) if asked else []
        boxes = dict(zip(asked, answers, strict=True))
        return [boxes.get(index, []) for index in range(len(rows))]

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions."""
        self.set_regions(row, output, set(self.asked(row)))


class GroundStage(BoxesStage):
    """Runs the user's own grounder, which finds tags and boxes at once."""

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions, best score first, and make their labels the row's tags."""
        self.set_regions(row, output)
        best: dict[str, float] = {}
        for region in row.regions:
            best.setdefault(region.label, region.score)
        row.tags = [Tag(label, score) for label, score in best.items()]


class SegmentStage(CustomStage):
    """Runs the user's own segmenter."""

    name = "segment"

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the masks of each row's regions, and their predicted IoU."""
        return self.answers(inputs, [np.array([region.box for region in row.regions]) for row in rows])

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the mask and the predicted IoU of each of the row's regions."""
        wanted = (len(row.regions), row.height, row.width)
        try:
            masks, quality = (np.asarray(part) for part in output)
        except (TypeError, ValueError) as error:
            raise BadAnswer("the segmenter gives no (masks, predicted IoU) for this image") from error
        if masks.shape != wanted or masks.dtype != bool:
            raise self.bad(f"masks {masks.dtype} {list(masks.shape)}", f"bool {list(wanted)}")
        if quality.shape != wanted[:1] or quality.dtype.kind not in "fiu" or not np.isfinite(quality).all():
            raise self.bad(f"predicted IoU {quality.dtype} {list(quality.shape)}", f"finite numbers [{wanted[0]}]")
        for region, mask, predicted in zip(row.regions, masks, quality.tolist(), strict=True):
            region.rle, region.predicted_iou = encode_mask(mask), float(predicted)


class CustomBoxSettings(CustomSettings):
    """Settings that select which boxes of a user's class are kept; they mean the same as in `DetectorSettings`."""

    nms_iou: float = Field(1.0, ge=0, le=1)
    nms_iou_across_labels: float = Field(1.0, ge=0, le=1)
    min_size: float = Field(1.0, ge=0)


class CustomTagger(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Tagger`."""

    section, method, stage = "tagger", "tag", TagStage


class CustomDetector(CustomBoxSettings):
    """See `pad_pipeline.stages.custom.protocol.Detector`."""

    section, method, stage, paths = "detector", "detect", DetectStage, ("unboxable",)

    unboxable: str = "default"
    """See `DetectorSettings`."""

    def files(self) -> list[ModelFile]:
        """Return the files of `CustomSettings`, and the list of tags that are not looked for."""
        return super().files() + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """Return the hashes of `CustomSettings`, and that of the list of tags that are not looked for."""
        return super().fingerprints() | unboxable_fingerprint(self.unboxable)

    def check(self) -> str:
        """See `CustomSettings`. No tag is left out here, so that the detector always runs."""
        return super(CustomDetector, self.model_copy(update={"unboxable": ""})).check()


class CustomSegmenter(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Segmenter`."""

    section, method, stage = "segmenter", "segment", SegmentStage


class CustomGrounder(CustomBoxSettings):
    """See `pad_pipeline.stages.custom.protocol.Grounder`. A grounder does the steps of a tagger and of a detector."""

    section, method, stage = "grounder", "tag_and_ground", GroundStage
