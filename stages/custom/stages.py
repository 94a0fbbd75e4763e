"""The user's own models as stages: batches, failures and retries as with pad's, and every answer looked at."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region, Tag, as_box
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.compute import Compute, ComputeSettings
from pad_pipeline.stages.custom.load import make
from pad_pipeline.stages.custom.protocol import Detection
from pad_pipeline.stages.custom.settings import CustomBoxes, CustomDetector, CustomSettings
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.ground import load_unboxable
from pad_pipeline.stages.segment import encode_mask
from pad_pipeline.stages.spans import normalize

STICKS_OUT = 1.0
"""Pixels by which a box may leave the image."""


class BadAnswer(ValueError):
    """A model of the user's returned something that the protocol does not allow."""


class CustomStage(Stage[np.ndarray, Any]):
    """What the four have in common: images as arrays, and as many answers as images."""

    def __init__(self, settings: CustomSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.decoding, self.batch_size, self.who = decoding, settings.batch_size, settings.section
        Compute(compute)  # sets the threads and what float32 means, for models on torch
        self.model = make(settings, compute)
        self.ask = getattr(self.model, settings.method)

    def shape(self, row: ImageRecord) -> tuple[int, ...]:
        """What the model's `bucket` says of the image's size."""
        if not hasattr(self.model, "bucket"):
            return ()
        return tuple(int(part) for part in self.model.bucket(row.width, row.height))

    def prepare(self, row: ImageRecord) -> np.ndarray:
        """The image, uint8 `[H, W, 3]`, read-only: it may be needed again after the model had it."""
        pixels = np.array(image(row, self.decoding), np.uint8)
        pixels.flags.writeable = False
        return pixels

    def answers(self, *questions: list[Any]) -> list[Any]:
        """What the model says to a batch, one answer for each image."""
        found = self.ask(*questions)
        if not isinstance(found, (list, tuple)) or len(found) != len(questions[0]):
            told = f"{len(found)} answers" if isinstance(found, (list, tuple)) else f"a {type(found).__name__}"
            count = len(questions[0])
            raise BadAnswer(f"the {self.who} gives {told} for {count} images; it should be a list of as many")
        return list(found)

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """The answers to a batch."""
        return self.answers(inputs)

    def pairs(self, found: Any, of: str) -> list[Any]:
        """An answer that should be a list."""
        if not isinstance(found, (list, tuple)):
            raise BadAnswer(f"the {self.who} gives a {type(found).__name__} for an image; it should be a list of {of}")
        return list(found)

    def number(self, value: Any, what: str) -> float:
        """A score: finite, 0..1."""
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not 0 <= score <= 1:
            raise BadAnswer(f"the {self.who} gives {what} the score {value!r}; it should be a number from 0 to 1")
        return score

    def name_of(self, value: Any) -> str:
        """A label: text that is there, on one line."""
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            raise BadAnswer(f"the {self.who} gives the label {value!r}; it should be words with single spaces between")
        return value


class TagStage(CustomStage):
    """Own tagger."""

    name = "tag"

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's tags, in the order they came; an image with none is `empty`."""
        tags = []
        for found in self.pairs(output, "(name, score)"):
            if not isinstance(found, (list, tuple)) or len(found) != 2:
                raise BadAnswer(f"the tagger gives the tag {found!r}; it should be (name, score)")
            tags.append(Tag(self.name_of(found[0]), self.number(found[1], repr(found[0]))))
        if len({tag.label for tag in tags}) < len(tags):
            raise BadAnswer("the tagger gives a name twice")
        row.tags = tags
        if not tags:
            row.status = "empty"


class BoxesStage(CustomStage):
    """Own detector or grounder: looks at boxes."""

    name = "ground"

    def __init__(self, settings: CustomBoxes, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding, compute)
        self.settings = settings

    def set_regions(self, row: ImageRecord, output: Any, asked: Container[str] | None = None) -> None:
        """Set the row's regions, best score first; an image with no box is `empty`.

        Args:
            row: the image.
            output: the boxes, as they came.
            asked: the labels that they may have; any by default.
        """
        regions = [self._region(row, found) for found in self.pairs(output, "Detection")]
        for region in regions:
            if asked is not None and region.label not in asked:
                raise BadAnswer(f"the {self.who} gives the label {region.label!r}, which was not asked for")
        least = self.settings.min_size
        regions = [r for r in regions if min(r.box[2] - r.box[0], r.box[3] - r.box[1]) >= least]
        row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        if not row.regions:
            row.status = "empty"

    def _region(self, row: ImageRecord, found: Any) -> Region:
        try:
            label, score, xyxy = Detection(*found)
            edges = np.array([float(edge) for edge in xyxy])
            if edges.shape != (4,):
                raise ValueError(f"{len(edges)} edges")
        except (TypeError, ValueError) as error:
            raise BadAnswer(f"the {self.who} gives {found!r}; it should be Detection(label, score, xyxy)") from error
        label, score = self.name_of(label), self.number(score, repr(label))
        size = np.array([row.width, row.height] * 2)
        inside = np.isfinite(edges).all() and (edges >= -STICKS_OUT).all() and (edges <= size + STICKS_OUT).all()
        if not inside or (edges[2:] < edges[:2]).any():
            rule = f"it should be x0 <= x1, y0 <= y1 in pixels of the {row.width} x {row.height} image"
            raise BadAnswer(f"the {self.who} gives {label!r} the box {edges.tolist()}; {rule}")
        return Region(label, as_box(edges.clip(0, size)), score=score, label_score=score)


class DetectStage(BoxesStage):
    """Own detector."""

    def __init__(self, settings: CustomDetector, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding, compute)
        self.unboxable = load_unboxable(settings.unboxable)

    def asked(self, row: ImageRecord) -> list[str]:
        """What is looked for."""
        tags = dict.fromkeys(tag.label for tag in row.tags)
        return [label for label in tags if normalize(label) not in self.unboxable]

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """The boxes of each row; an image with nothing to look for is not asked about."""
        wanted = [self.asked(row) for row in rows]
        asked = [index for index, labels in enumerate(wanted) if labels]
        found: list[Any] = [[] for _ in rows]
        if asked:
            answers = self.answers([inputs[index] for index in asked], [wanted[index] for index in asked])
            for index, answer in zip(asked, answers, strict=True):
                found[index] = answer
        return found

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions."""
        self.set_regions(row, output, set(self.asked(row)))


class GroundStage(BoxesStage):
    """Own grounder: tags and boxes at once."""

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the row's regions, and as its tags their labels, best score first."""
        self.set_regions(row, output)
        row.tags = [Tag(label, score) for label, score in _best(row.regions).items()]


def _best(regions: list[Region]) -> dict[str, float]:
    """Each label's best score; regions come best first."""
    found: dict[str, float] = {}
    for region in regions:
        found.setdefault(region.label, region.score)
    return found


class SegmentStage(CustomStage):
    """Own segmenter."""

    name = "segment"

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[Any]:
        """The masks of each row's regions."""
        return self.answers(inputs, [np.array([region.box for region in row.regions]) for row in rows])

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Set the mask and the predicted IoU of each of the row's regions."""
        wanted = (len(row.regions), row.height, row.width)
        try:
            masks, quality = (np.asarray(part) for part in output)
        except (TypeError, ValueError) as error:
            raise BadAnswer("the segmenter gives no (masks, predicted IoU) for this image") from error
        if masks.shape != wanted or masks.dtype != bool:
            rule = f"it should be bool {list(wanted)}"
            raise BadAnswer(f"the segmenter gives masks {masks.dtype} {list(masks.shape)}; {rule}")
        if quality.shape != wanted[:1] or quality.dtype.kind not in "fiu" or not np.isfinite(quality).all():
            rule = f"it should be finite numbers [{wanted[0]}]"
            raise BadAnswer(f"the segmenter gives predicted IoU {quality.dtype} {list(quality.shape)}; {rule}")
        for region, mask, predicted in zip(row.regions, masks, quality.tolist(), strict=True):
            region.rle, region.predicted_iou = encode_mask(mask), float(predicted)
