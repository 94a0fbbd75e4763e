"""Models as a user would write them, against `pad_pipeline.stages.custom.protocol` and nothing else of pad's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.protocol import Detection


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    words: list[str] = ["house", "car", "red"]
    weights: Path | None = None
    score: float = Field(0.75, ge=0, le=1)
    fault: str = ""
    """What goes wrong with images whose first pixel is `odd`."""
    odd: int = -1


def part(image: np.ndarray, number: int) -> tuple[float, float, float, float]:
    """A box that depends on the image."""
    height, width = image.shape[:2]
    shift = int(image[0, 0, 0]) % 8
    return (4.0 + shift + number, 5.0, width - 6.0, height - 7.0 - number)


class Tagger:
    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def tag(self, images: list[np.ndarray]) -> list[list[tuple[str, float]]]:
        return [[(word, self.settings.score) for word in self.settings.words] for _ in images]


class Detector:
    Settings = Settings

    def __init__(self, settings: Settings, compute: ComputeSettings) -> None:
        self.settings, self.compute = settings, compute
        self.calls: list[int] = []

    @classmethod
    def fingerprint(cls, settings: Settings) -> dict[str, str]:
        return {"words": hashlib.sha256(" ".join(settings.words).encode()).hexdigest()}

    def bucket(self, width: int, height: int) -> tuple[int, ...]:
        return (int(width > height),)

    def detect(self, images: list[np.ndarray], labels: list[list[str]]) -> list[list[Detection]]:
        self.calls.append(len(images))
        assert all(not image.flags.writeable and image.dtype == np.uint8 for image in images)
        found = []
        for image, its in zip(images, labels, strict=True):
            boxes = [Detection(label, self.settings.score, part(image, number)) for number, label in enumerate(its)]
            found.append(self._spoilt(boxes, image) if image[0, 0, 0] == self.settings.odd else boxes)
        return found[1:] if self.settings.fault == "fewer" and any(len(boxes) == 0 for boxes in found) else found

    def _spoilt(self, boxes: list[Detection], image: np.ndarray) -> list[Detection]:
        match self.settings.fault:
            case "raise":
                raise RuntimeError("no such image in my training")
            case "memory" if self.calls[-1] > 1:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 3")
            case "label":
                return [boxes[0]._replace(label="unicorn")]
            case "outside":
                return [boxes[0]._replace(xyxy=(0.0, 0.0, image.shape[1] + 9.0, 4.0))]
            case "nan":
                return [boxes[0]._replace(xyxy=(0.0, 0.0, float("nan"), 4.0))]
            case "swapped":
                return [boxes[0]._replace(xyxy=(9.0, 0.0, 4.0, 4.0))]
            case "score":
                return [boxes[0]._replace(score=1.5)]
            case "form":
                return [{"label": "house"}]  # type: ignore[list-item]
            case "fewer":
                return []
        return boxes


class Segmenter:
    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def segment(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for image, its in zip(images, boxes, strict=True):
            masks = np.zeros((len(its), *image.shape[:2]), bool)
            for mask, (x0, y0, x1, y1) in zip(masks, its.round().astype(int), strict=True):
                mask[y0:y1, x0:x1] = True
            quality = np.full(len(its), self.settings.score)
            if image[0, 0, 0] == self.settings.odd:
                masks = masks.astype(np.uint8) if self.settings.fault == "dtype" else masks[:, :-1]
            found.append((masks, quality))
        return found


class Grounder:
    """Without settings."""

    def tag_and_ground(self, images: list[np.ndarray]) -> list[list[Detection]]:
        return [[Detection("car", 0.5, part(image, 0)), Detection("house", 0.9, part(image, 1))] for image in images]


class NoMethod:
    Settings = Settings


class Unmakeable(Detector):
    def __init__(self, settings: Settings) -> None:
        raise RuntimeError("no room\nfor my weights")


class BadSettings(Grounder):
    Settings: Literal["no model"] = "no model"


class Secretive(Grounder):
    class Settings(BaseModel):
        key: SecretStr

    def __init__(self, settings: Settings) -> None:
        raise AssertionError("it should not come to this")


not_a_class = Detector
number = 3
