"""The stages that run a user's own models and check all their answers, and the settings of these stages."""

from __future__ import annotations

from collections.abc import Container
from itertools import compress
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
from pad_pipeline.stages.rle import encode_mask
from pad_pipeline.stages.spans import normalize
from pad_pipeline.weights import ModelFile

TOLERANCE = 1.0
"""Pixels by which a box may exceed the image."""


class BadAnswer(ValueError):
    """Raised when a user's model returns something that the protocol does not allow."""


class CustomStage(Stage[np.ndarray, Any]):
    """The base class of the four stages. It passes images to the model as arrays, and checks its answers."""

    def __init__(self, settings: CustomSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        Compute(compute)  # for models that use torch: sets the number of threads and the precision of float32
        self.model = settings.load(compute)
        self.method = getattr(self.model, settings.method)

    def bad(self, given: str, wanted: str) -> BadAnswer:
        """Return an error about an answer: `given` describes the answer, and `wanted` a correct answer."""
        return BadAnswer(f"the {self.settings.section} gives {given}; it should be {wanted}")

    def shape(self, row: ImageRecord) -> tuple[int, ...]:
        """Return the result of the model's `bucket` for the image's size; empty without `bucket`."""
        if not hasattr(self.model, "bucket"):
            return ()
        return tuple(int(part) for part in self.model.bucket(row.width, row.height))

    def prepare(self, row: ImageRecord) -> np.ndarray:
        """Return the image, uint8 `[H, W, 3]`. It is read-only, because a batch may be tried again."""
        pixels = np.array(image(row, self.decoding), np.uint8)
        pixels.flags.writeable = False
        return pixels

    def answers(self, *questions: list[Any]) -> list[Any]:
        """Call the model's method on a batch, and return its answers, one for each image."""
        answers, count = self.method(*questions), len(questions[0])
        if not isinstance(answers, (list, tuple)):
            raise self.bad(f"a {type(answers).__name__} for {count} images", "a list of as many")
        if len(answers) != count:
            raise self.bad(f"{len(answers)} answers for {count} images", "a list of as many")
        return list(answers)

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the model's answer for each row."""
        return self.answers(inputs)

    def check_list(self, answer: Any, of: str) -> list[Any]:
        """Return the answer for an image if it is a list. If not, raise an error that names the items, `of`."""
        if not isinstance(answer, (list, tuple)):
            raise self.bad(f"a {type(answer).__name__} for an image", f"a list of {of}")
        return list(answer)

    def check_score(self, value: Any, of: str) -> float:
        """Return a score, after a check that it is 0..1. `of` names the scored label for the error."""
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not 0 <= score <= 1:
            raise self.bad(f"{of} the score {value!r}", "a number from 0 to 1")
        return score

    def check_label(self, value: object) -> str:
        """Return a label, after a check that it consists of words with single spaces between."""
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            raise self.bad(f"the label {value!r}", "words with single spaces between")
        return value


class TagStage(CustomStage):
    """Runs the user's own tagger."""

    name, statuses = "tag", frozenset({"ok", "empty"})  # an image whose caption names nothing is `empty` before

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's tags, in the model's order. An image without tags becomes `empty`."""
        tags = []
        for pair in self.check_list(output, "(name, score)"):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise self.bad(f"the tag {pair!r}", "(name, score)")
            tags.append(Tag(self.check_label(pair[0]), self.check_score(pair[1], repr(pair[0]))))
        if len({tag.label for tag in tags}) < len(tags):
            raise BadAnswer("the tagger gives a name twice")
        row.add_tags("tagger", tags)
        row.status = "ok" if row.tags else "empty"


class BoxesStage(CustomStage):
    """The base class of the stages of detector and grounder, whose models return boxes."""

    name = "ground"
    settings: CustomBoxSettings

    def set_regions(self, row: ImageRecord, output: Any, asked: Container[str] | None = None) -> None:
        """Set the row's regions, highest score first. An image without a box becomes `empty`.

        `output` is the model's answer. Its labels must be in `asked`, if that is given.
        """
        regions = [self._region(row, detection) for detection in self.check_list(output, "Detection")]
        for region in regions:
            if asked is not None and region.label not in asked:
                raise BadAnswer(f"the detector gives the label {region.label!r}, which was not asked for")
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
        label, score = self.check_label(label), self.check_score(score, repr(label))
        size = np.array([row.width, row.height] * 2)
        inside = np.isfinite(edges).all() and (edges >= -TOLERANCE).all() and (edges <= size + TOLERANCE).all()
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
        """Return the labels to look for: the row's tags, except for tags that can't have a box."""
        tags = dict.fromkeys(tag.label for tag in row.tags)
        return [label for label in tags if normalize(label) not in self.unboxable]

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the boxes of each row. Images without a label to look for do not reach the model."""
        labels = [self.asked(row) for row in rows]
        asked = [of_row for of_row in labels if of_row]
        answers = iter(self.answers([*compress(inputs, labels)], asked) if asked else [])
        return [next(answers) if of_row else [] for of_row in labels]

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions."""
        self.set_regions(row, output, set(self.asked(row)))


class GroundStage(BoxesStage):
    """Runs the user's own grounder, which finds both tags and boxes."""

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions, highest score first, and make each of their labels a tag with its highest score."""
        self.set_regions(row, output)
        labels = dict.fromkeys(region.label for region in row.regions)
        tags = [Tag(label, max(r.score for r in row.regions if r.label == label)) for label in labels]
        row.add_tags("grounder", tags)


class SegmentStage(CustomStage):
    """Runs the user's own segmenter."""

    name = "segment"

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """Return the model's answer for each row: masks and predicted IoU of its regions."""
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
    """Settings for the boxes of a user's class, with the same meaning as in `DetectorSettings`."""

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
        """See `CustomSettings`; the file of the setting `unboxable` is added."""
        return super().files() + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """See `CustomSettings`; the hash of the list of unboxable tags is added."""
        return super().fingerprints() | unboxable_fingerprint(self.unboxable)

    def check(self) -> str:
        """See `CustomSettings`. The check works without unboxable tags, so that the detector always runs."""
        return super(CustomDetector, self.model_copy(update={"unboxable": ""})).check()


class CustomSegmenter(CustomSettings):
    """See `pad_pipeline.stages.custom.protocol.Segmenter`."""

    section, method, stage = "segmenter", "segment", SegmentStage


class CustomGrounder(CustomBoxSettings):
    """See `pad_pipeline.stages.custom.protocol.Grounder`."""

    section, method, stage = "grounder", "tag_and_ground", GroundStage
