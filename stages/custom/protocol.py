"""What a model of your own must be able to do, to stand in the place of one of pad's: see docs/howto/own-models.md.

A class need not inherit from these; it needs the method. It is made once in each worker, as `Class(settings)`, where
`settings` is an instance of its attribute `Settings` (a pydantic model), filled from the TOML; `Class()` where it has
no such attribute. Settings stand in run.json, which is no place for secrets. A constructor with a parameter `compute`
is given a `pad_pipeline.stages.compute.ComputeSettings` too: the precision, and how many CPU threads.

Two more things it may have:

- `fingerprint(cls, settings) -> dict[str, str]`, a class method: what else decides its results, by name, such as the
  sha256 of a folder. Files that a setting of type `Path` names are hashed by pad itself.
- `bucket(self, width, height) -> tuple[int, ...]`: images of one call have the same. Without it, images of a call
  have any sizes.

Every method gets a list of images and returns a list of the same length. What it raises halves the batch, down to
the image that causes it, which fails alone, with the reason; so does an image whose answer is not as said here.
`UserError` and `OSError` stop the run: they are no image's fault. torch's `OutOfMemoryError` makes batches smaller.

Images are uint8 `[H, W, 3]`, RGB, upright, 0..255, and read-only, for a batch may be tried again. A result must
depend on its own image alone, or runs will not be repeatable.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Detection(NamedTuple):
    """A labeled box that a detector finds, with its score."""

    label: str
    """One of those that were asked for; of a grounder, any."""
    score: float
    """0..1."""
    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image: 0..W, 0..H. What sticks out by up to a pixel is clipped."""


class Tagger(Protocol):
    """Says what is in an image."""

    def tag(self, images: list[np.ndarray]) -> list[list[tuple[str, float]]]:
        """The names of each image, each once, with a score 0..1. None at all is an empty image."""


class Detector(Protocol):
    """Finds where the tags are."""

    def detect(self, images: list[np.ndarray], labels: list[list[str]]) -> list[list[Detection]]:
        """The detections of each image.

        Args:
            images: the images.
            labels: what is looked for in each: at least one label, each once.
        """


class Segmenter(Protocol):
    """Says which pixels a box means."""

    def segment(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each image the masks of its boxes, bool `[N, H, W]`, and how good it thinks each is, float `[N]`:
        its guess of the intersection over union with the truth.

        Args:
            images: the images.
            boxes: of each, float64 `[N, 4]`, N at least 1, `xyxy` in pixels.
        """


class Grounder(Protocol):
    """Tagger and detector in one: names what it finds, and where."""

    def tag_and_ground(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """The detections of each image. Their labels become its tags, each with its best score."""
