"""The base class of Segment Anything models, which maps boxes and masks between the image and the encoder's square."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pad_pipeline.stages.compute import Compute


class SegmentAnything(ABC):
    """A Segment Anything model on its device. Its encoder takes a square of `edge` x `edge` pixels."""

    threshold = 0.0
    """Pixels whose logit is above this belong to a mask."""
    stretched = False
    """Whether images are stretched to the square; otherwise they keep their aspect ratio and are padded."""
    compute: Compute
    edge: int
    """Edge of the square in pixels."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image as a tensor for `encode`, `[3, h, w]`."""

    @abstractmethod
    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Encode images from `prepare` to the tensors that `decode` takes, each `[B, ...]`."""

    @abstractmethod
    def decode(self, embeddings: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one mask for each box: return mask logits, float32 `[N, h, w]`, and predicted IoU, float32 `[N]`.

        Args:
            embeddings: from `encode`.
            image: the index of each box's image in the batch, ascending, int64 `[N]` on the CPU.
            boxes: from `scale_boxes`, float32 `[N, 4]` on the CPU.
        """

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the height and width to which an image of `width` x `height` pixels is resized."""
        if self.stretched:
            return self.edge, self.edge
        scale = self.edge / max(width, height)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def scale_boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Scale boxes `[N, 4]`, xyxy, from pixels of the image to pixels of the square."""
        new_height, new_width = self.resized(width, height)
        scaled: np.ndarray = boxes * np.array([new_width / width, new_height / height] * 2)
        return scaled

    def upscale(self, logits: Tensor, width: int, height: int) -> Tensor:
        """Resize mask logits `[N, h, w]` to the image, `[N, height, width]`, as upstream does.

        For a padded image, they are resized to the square, cut to the image's part of it, and resized to the image. A
        single resize would give other pixels.
        """
        if not self.stretched:
            new_height, new_width = self.resized(width, height)
            logits = _bilinear(logits, self.edge, self.edge)[:, :new_height, :new_width]
        return _bilinear(logits, height, width)


def _bilinear(logits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
