"""The base class of all studies, and the types that studies share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import EncodedBatch
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.measures.vocabulary import Vocabulary


@dataclass(frozen=True)
class Context:
    """The model, the settings and the labels that all studies of one analysis share."""

    subject: Subject
    settings: AnalysisSettings
    labels: Sequence[str] = ()
    """The distinct labels of the images, sorted; empty if no study needs them."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """The captions of the first images that have one, by the images' keys; empty if no study needs them."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the analyzed LLM, and the token ids of each label."""
        ids = {label: self.subject.labels.tokens(label) for label in self.labels}
        return Vocabulary(self.subject.tokenizer, len(self.subject.words), ids)


class Chart(NamedTuple):
    """The data of a chart, which shows the result of a study."""

    title: str
    values: Mapping[str, float | None] | Sequence[float]
    """The bars by name, or the points of a curve."""
    plain: Sequence[str] = ()
    """Words in the names of the bars that are shown for comparison. These bars are gray."""
    steps: str = ""
    """The title of a curve's horizontal axis."""


class Study(ABC):
    """Measures a projector over the images of a run. `STUDIES` lists all studies."""

    needs_labels: ClassVar[bool] = True
    """Whether the study needs the labels of the images."""
    needs_captions: ClassVar[bool] = False
    """Whether the study needs the captions of the images before it begins."""

    @abstractmethod
    def __init__(self, context: Context) -> None: ...

    @abstractmethod
    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return the results by name; NaN if nothing could be measured."""

    @staticmethod
    @abstractmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return the chart of a result."""


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
