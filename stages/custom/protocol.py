"""The methods that a model of your own needs so that it can replace one of pad's models: see docs/howto/own-models.md.

A class needs the method; it need not inherit from these protocols. It is made once in each worker: as `Class(settings)`
if it has an attribute `Settings` (a pydantic model), with an instance of it that is filled from the TOML; otherwise as
`Class()`. Settings are written to run.json, so they must hold no secrets. A constructor with a parameter `compute` also
gets a `pad_pipeline.stages.compute.ComputeSettings`: the precision and the number of CPU threads.

The class may also have:

- `fingerprint(cls, settings) -> dict[str, str]`, a class method: hashes, by name, of anything else that affects its
  results, such as a folder. pad itself hashes files that a setting of type `Path` names.
- `bucket(self, width, height) -> tuple[int, ...]`: all images of one call have the same bucket. Without it, the images
  of a call have any sizes.

Every method gets a list of images and returns a list of the same length. If it raises an exception, the batch is halved
and tried again, down to the image that causes the exception; only that image fails, with the reason. An image fails,
too, if its result does not have the form described here. `UserError` and `OSError` stop the run, because no image is to
blame for them. torch's `OutOfMemoryError` makes batches smaller.

Images are uint8 `[H, W, 3]`, RGB, upright, 0..255, and read-only, because a batch may be tried again. A result must
depend on its own image alone; otherwise runs are not repeatable.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Detection(NamedTuple):
    """A labeled box that a detector finds, with its score."""

    label: str
    """One of the labels that the detector was given; a grounder may return any label."""
    score: float
    """0..1."""
    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels: 0..W, 0..H. A box that exceeds the image by a pixel or less is clipped."""


class Tagger(Protocol):
    """Finds the tags of an image."""

    def tag(self, images: list[np.ndarray]) -> list[list[tuple[str, float]]]:
        """Return the tags of each image, each once, with a score 0..1. An image without tags is empty."""


class Detector(Protocol):
    """Finds boxes for the tags of an image."""

    def detect(self, images: list[np.ndarray], labels: list[list[str]]) -> list[list[Detection]]:
        """Return the detections of each image. `labels` has the labels to look for in it: at least one, each once."""


class Segmenter(Protocol):
    """Finds the mask of each box."""

    def segment(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each image the masks of its boxes, bool `[N, H, W]`, and their predicted IoU, float `[N]`.

        The boxes of an image are float64 `[N, 4]`, N at least 1, `xyxy` in pixels.
        """


class Grounder(Protocol):
    """Tagger and detector in one: finds labels and their boxes."""

    def tag_and_ground(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """Return the detections of each image. Their labels become its tags, each with its best score."""
