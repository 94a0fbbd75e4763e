"""A detector with fixed labels, through ONNX Runtime, in the place of pad's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FilePath

from pad_pipeline.errors import UserError
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.protocol import Detection


class OnnxSettings(BaseModel):
    """What stands in `[detector.settings]`. Files are hashed by pad, because their type is a path."""

    model_config = ConfigDict(extra="forbid")

    model: FilePath
    """See the README for what goes in and what comes out."""
    labels: FilePath
    """One a line, in the order of the scores."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of a pixel's colors, 0..1; taken off."""
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)


class OnnxDetector:
    """Finds those of an image's tags that are among its labels, case aside."""

    Settings = OnnxSettings

    def __init__(self, settings: OnnxSettings, compute: ComputeSettings) -> None:
        self.settings = settings
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = compute.threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self.session = onnxruntime.InferenceSession(str(settings.model), options, providers=providers)
        (self.input,) = self.session.get_inputs()
        self.size = int(self.input.shape[-1])
        lines = Path(settings.labels).read_text("utf-8").splitlines()
        self.labels = {line.strip().lower(): number for number, line in enumerate(lines) if line.strip()}
        classes = self.session.get_outputs()[[out.name for out in self.session.get_outputs()].index("scores")].shape[-1]
        if classes != len(self.labels):
            rule = f"it has {len(self.labels)} labels, and the model gives {classes} scores"
            raise UserError("detector.settings.labels", settings.labels, rule, "give the labels of this model")

    def detect(self, images: list[np.ndarray], labels: list[list[str]]) -> list[list[Detection]]:
        """The boxes of each image's labels."""
        boxes, scores = self.session.run(["boxes", "scores"], {self.input.name: self._pixels(images)})
        return [self._boxes(*parts) for parts in zip(images, labels, boxes, scores, strict=True)]

    def _pixels(self, images: list[np.ndarray]) -> np.ndarray:
        square = (self.size, self.size)
        resized = [np.asarray(Image.fromarray(image).resize(square, Image.Resampling.BILINEAR)) for image in images]
        colors = np.stack(resized).astype(np.float32) / 255
        mean, deviation = (np.array(part, np.float32) for part in (self.settings.mean, self.settings.deviation))
        return np.ascontiguousarray(((colors - mean) / deviation).transpose(0, 3, 1, 2))

    def _boxes(self, image: np.ndarray, asked: list[str], boxes: np.ndarray, scores: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        center, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = np.concatenate([center - half, center + half], 1).clip(0, 1) * [width, height, width, height]
        found = []
        for label in asked:
            number = self.labels.get(label.lower())
            if number is not None:
                good = np.flatnonzero(scores[:, number] >= self.settings.score_threshold)
                found += [
                    Detection(label, float(scores[query, number]), tuple(corners[query].tolist())) for query in good
                ]
        return found
