"""The base class of the segmenters: the network's interface, and the way of boxes and masks between the image and the
encoder's square."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pad_pipeline.stages.compute import Compute


class SegmentAnything(ABC):
    """A Segment Anything model on its device."""

    threshold = 0.0
    """A pixel belongs to a mask if its logit is above this."""
    stretched = False
    """Whether images are stretched to the encoder's square; otherwise they keep their aspect ratio and are padded."""
    compute: Compute
    edge: int
    """Edge of the encoder's square, in pixels."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """Return one image as `encode` takes it, `[3, h, w]`."""

    @abstractmethod
    def encode(self, images: list[Tensor], size: int) -> list[Tensor]:
        """Encode images from `prepare` to the tensors that the decoder takes, each `[B, ...]`.

        A compiled encoder fills up a batch of fewer than `size` images, see `Compute.filled`.
        """

    @abstractmethod
    def decode(self, embeddings: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one mask for each box: return mask logits, float32 `[N, h, w]`, and predicted IoU, float32 `[N]`.

        Args:
            embeddings: from `encode`.
            image: int64 `[N]`, ascending, on the CPU: the index of each box's image in the batch.
            boxes: float32 `[N, 4]` on the CPU, from `boxes`.
        """

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the height and width to which an image of `width` x `height` pixels is resized."""
        if self.stretched:
            return self.edge, self.edge
        scale = self.edge / max(width, height)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def scale_boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Scale boxes `[N, 4]`, xyxy, from pixels of the image to pixels of the encoder's square."""
        new_height, new_width = self.resized(width, height)
        scaled: np.ndarray = boxes * np.array([new_width / width, new_height / height] * 2)
        return scaled

    def upscale(self, logits: Tensor, width: int, height: int) -> Tensor:
        """Resize mask logits `[N, h, w]` to the image, `[N, height, width]`, as upstream does.

        Without stretching, they are resized to the encoder's square, cut to the part that the image fills, and resized
        to the image. A single resize would not give the same pixels.
        """
        if not self.stretched:
            new_height, new_width = self.resized(width, height)
            logits = _bilinear(logits, self.edge, self.edge)[:, :new_height, :new_width]
        return _bilinear(logits, height, width)


def _bilinear(logits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
