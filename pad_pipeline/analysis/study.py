"""The base of all studies: what one is made from, what it does with a batch of images, and how its result is drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import Seen
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.measures.vocabulary import Vocabulary


@dataclass(frozen=True)
class Context:
    """What the studies of one analysis have in common."""

    subject: Subject
    settings: AnalysisSettings
    labels: Sequence[str] = ()
    """The distinct labels of the images, sorted; empty where no study needs them."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the subject's LLM, and the labels in them."""
        ids = {label: self.subject.labels.tokens(label) for label in self.labels}
        return Vocabulary(self.subject.tokenizer, len(self.subject.words), ids)


class Chart(NamedTuple):
    """A drawing of a study's result."""

    title: str
    values: Mapping[str, float | None] | Sequence[float]
    """Bars by their names, or the points of a curve."""
    plain: Sequence[str] = ()
    """Words in the names of bars that are only there to be compared with."""
    steps: str = ""
    """What the steps of a curve are."""


class Study(ABC):
    """One analysis of a projector over the images of a run. `STUDIES` lists all of them."""

    needs_labels: ClassVar[bool] = True
    """Whether it can't be made without the labels of the images."""

    @abstractmethod
    def __init__(self, context: Context) -> None: ...

    @abstractmethod
    def add(self, batch: Seen) -> None:
        """Add a batch of images."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return the results by name; NaN where nothing could be measured."""

    @staticmethod
    @abstractmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return the drawing of a result."""


class Mean:
    """A running mean. Its sum stays on the device of the values, because reading it would wait for the GPU."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """Add values, of any shape."""
        self._sum = self._sum + values.double().sum()
        self.count += values.numel()

    def value(self) -> float:
        """Return the mean; NaN before the first value."""
        return float(self._sum) / self.count if self.count else math.nan
