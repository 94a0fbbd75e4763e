"""The methods with which your own model can replace one of pad's models; see docs/howto/own-models.md.

A class needs one of these methods; it need not inherit from these protocols. Each worker makes one instance, with
`Class()`. If the class has an attribute `Settings` (a pydantic model), the call is `Class(settings)`, with an instance
of `Settings` from the TOML. Settings are written to run.json, so they must not hold secrets. If the constructor has a
parameter `compute`, it also gets a `pad_pipeline.stages.compute.ComputeSettings`: precision and number of CPU threads.

The class may also have:

- `fingerprint(cls, settings) -> dict[str, str]`, a class method: hashes, by name, of anything else that affects the
  results, such as a folder. pad itself hashes the files in settings of type `Path`.
- `bucket(self, width, height) -> tuple[int, ...]`: all images of a call have the same bucket. Without this method,
  the images of a call may have different sizes.

Each method gets a list of images and returns a list of the same length. If it raises an exception, the batch is halved
and tried again, down to the image that causes the exception. Only that image fails, with the reason. An image also
fails if its result does not have the form described here. `UserError` and `OSError` stop the run, because the user or
the machine caused them, and not an image. torch's `OutOfMemoryError` makes batches smaller.

Images are uint8 `[H, W, 3]`, RGB, upright, 0..255, and read-only, because a batch may be tried again. The result for an
image must not depend on other images; otherwise runs are not repeatable.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Detection(NamedTuple):
    """A labeled box with its score."""

    label: str
    """One of the labels that the detector was asked for; a grounder may return any label."""
    score: float
    """The score, 0..1."""
    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels: 0..W, 0..H. A box that exceeds the image by at most a pixel is clipped."""


class Tagger(Protocol):
    """Finds the tags of an image."""

    def tag(self, images: list[np.ndarray]) -> list[list[tuple[str, float]]]:
        """Return the tags of each image, with scores 0..1. A tag may occur only once; an empty list means no tags."""


class Detector(Protocol):
    """Finds boxes for the tags of an image."""

    def detect(self, images: list[np.ndarray], labels: list[list[str]]) -> list[list[Detection]]:
        """Return the detections of each image. `labels` has the labels to look for in each image: one or more,
        without repetition."""


class Segmenter(Protocol):
    """Finds the mask of each box."""

    def segment(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each image the masks of its boxes, bool `[N, H, W]`, and their predicted IoU, float `[N]`.

        Each item of `boxes` has the boxes of an image, float64 `[N, 4]` with N >= 1, `xyxy` in pixels.
        """


class Grounder(Protocol):
    """Finds labels and their boxes, in place of a tagger and a detector."""

    def tag_and_ground(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """Return the detections of each image. Their labels become the image's tags, each with its highest score."""
