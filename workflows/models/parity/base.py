"""What the comparisons of all models share: the image, the numbers of upstream, and the differences from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import Box, ImageRecord
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.weights import read_tensors

LEVELS = 1.01
"""The largest allowed difference of resized images, in gray levels of 0..255. Versions of Pillow and torchvision round
a resized pixel differently, by one level. Another filter, or one without antialiasing, differs by far more. The
networks are compared on upstream's own resized image, so this difference is in no other number."""
DECODING = DecodeSettings()
COMPUTE = ComputeSettings(precision="float32")


class NotCompared(Exception):  # it is an answer, and no error
    """Says why a model was not compared, and what would make it possible."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why, remedy)
        self.why, self.remedy = why, remedy


class Measure(NamedTuple):
    """The largest difference between pad's and upstream's numbers of one kind."""

    what: str
    numbers: int
    """How many numbers were compared."""
    difference: float
    """NaN if one of the numbers is not finite."""
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance. It is not for NaN, and not if nothing was compared."""
        return self.numbers > 0 and self.difference <= self.tolerance


class Numbers(NamedTuple):
    """What upstream's example wrote."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def array(self, name: str, dimensions: int) -> np.ndarray:
        """Return one of the arrays; raise `NotCompared` if it is not there, or is not of numbers in this form."""
        found = self.arrays.get(name)
        if found is None or found.ndim != dimensions or found.size == 0 or found.dtype.kind not in "fiub":
            raise NotCompared(f"upstream's example wrote no usable numbers ({name})", "report this")
        return found


@dataclass
class Subject:
    """The image of a comparison, and the prompts for the models."""

    row: ImageRecord
    path: Path
    """The decoded image as PNG, so that both sides read the same pixels whatever decodes their files."""
    labels: list[str]
    """Tags for the detector, if the tagger gives none."""
    boxes: list[Box] = field(default_factory=list)
    """Boxes for the segmenter, in pixels; empty for those of the detector."""


class Comparison(ABC):
    """Compares one of pad's models with upstream.

    Making one loads pad's model. `job` are the arguments of upstream's example. `measure` takes its numbers, runs pad's
    stage on the same input, and compares.
    """

    example: str
    """The name of the example in `script.py`."""
    package: str
    """The package that has upstream's code, by its import name."""
    install: str
    """The command that installs it."""
    page: str
    """The address of upstream's example."""
    device: str
    """Where pad's stage computes."""
    shown: dict[str, Any]
    """Other numbers for the report, after `measure`."""

    @abstractmethod
    def job(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Return the arguments of the example; raise `NotCompared` if upstream can't run such a model."""

    @abstractmethod
    def measure(self, subject: Subject, numbers: Numbers) -> list[Measure]:
        """Run pad's stage and return the differences; raise `NotCompared` if they would mean nothing."""


def largest(ours: np.ndarray, theirs: np.ndarray, relative: bool = False) -> float:
    """Return the largest difference between two arrays of one shape; NaN if a number is not finite.

    With `relative`, a difference of numbers beyond 1 is divided by upstream's number, because the error of a sum in
    float32 grows with its terms.
    """
    difference = np.abs(ours.astype(np.float64) - theirs)
    if relative:
        difference /= np.maximum(1, np.abs(theirs))
    return float(difference.max())


def input_levels(ours: np.ndarray, theirs: np.ndarray, deviation: np.ndarray) -> Measure:
    """Compare two normalized images `[3, H, W]`, in gray levels; `deviation` is that of each channel, 0..1."""
    if ours.shape != theirs.shape:
        size = " and ".join(f"{image.shape[-1]} x {image.shape[-2]}" for image in (ours, theirs))
        return Measure(f"resized, {size} pixels", 1, float("inf"), 0.0)
    scale = deviation.reshape(3, 1, 1) * 255
    return Measure("resized, gray levels", theirs.size, largest(ours * scale, theirs * scale), LEVELS)


def check_spread(what: str, values: np.ndarray) -> None:
    """Raise `NotCompared` if upstream's numbers are all alike, because any model would equal them."""
    if np.ptp(values) < 1e-3:
        raise NotCompared(f"upstream gives the same {what} everywhere, so equal numbers would mean nothing")


def as_checkpoint(field: str, weights: Path, folder: Path, nested: bool) -> str:
    """Return the path of a checkpoint that upstream's loader can read, for a `.safetensors` file a `.pth` copy.

    `nested` is for loaders that want the tensors in an entry "model".
    """
    if weights.suffix != ".safetensors":
        return str(weights)
    state = {name: tensor.clone() for name, tensor in read_tensors(field, weights).items()}
    copy = folder / "weights.pth"
    torch.save({"model": state} if nested else state, copy)
    return str(copy)
