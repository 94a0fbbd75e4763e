"""Settings of the studies: the choices that the paper leaves open."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.geometry import PatchRule
from pad_pipeline.measures.align import ThresholdRule
from pad_pipeline.measures.vocabulary import WordFilter


class AnalysisSettings(BaseModel):
    """The choices of an analysis that the paper leaves open."""

    model_config = ConfigDict(extra="forbid")

    patches: PatchRule = "argmax"
    """Which patches show a label, see `PatchRule`. `argmax`: the patches that a mask covers by half or more; if
    there are none, the patches that it covers most. With `half`, a third of real objects have no patch. `any` and
    `soft`: all patches that the mask touches."""
    seed: int = Field(0, ge=0)
    """The seed of the controls: shuffled labels, shuffled patches, the untrained projector."""
    unit: Literal["nats", "bits"] = "nats"
    """The unit of entropies."""
    center: bool = False
    """Whether the mean of the vectors is subtracted before an entropy is computed."""
    every_choice: bool = False
    """Whether entropies are given by all choices side by side: of an image and pooled, with and without the mean, in
    nats and in bits. It takes twice as long."""
    threshold_rule: ThresholdRule = "best"
    """The rule that decides whether a token says a label, see `ThresholdRule`."""
    threshold: float = Field(0.5, ge=-1, le=1)
    """The threshold of the cosine for the rule `fixed`."""
    among: Literal["image", "all"] = "image"
    """The labels among which a patch chooses with the rule `argmax`: the labels of its image, or of all images."""
    steps: int = Field(5, ge=1)
    """The number of words that matching pursuit takes for a token; K in the paper."""
    orthogonal: bool = False
    """Whether matching pursuit is orthogonal."""
    positive: bool = False
    """Whether a step takes the word w with the highest <r, w>, not the highest |<r, w>|; r is the residual."""
    words: WordFilter = "all"
    """The tokens of the LLM that matching pursuit chooses from."""
    lens_layer: int = -1
    """Index of the LLM's hidden state that the logit lens reads; -1 is the last."""
    sentences: int = Field(512, ge=1)
    """The number of captions with whose words the study `sentences` compares vision tokens: of the first images."""
    sentence_layers: tuple[int, ...] = ()
    """The LLM's hidden states that the study `sentences` compares: 0 is the input, -1 the last. Empty for four of them
    at equal distances."""
    neighbors: int = Field(10, ge=1)
    """The number k of neighbors in the neighbor overlap."""
    least_align: float = Field(0.15, ge=0, le=1)
    """An Align below this is a sign of failure; the value is the paper's."""
    above_chance: float = Field(1.2, ge=0)
    """An Align below this many times its best control is a sign of failure: with large regions, chance alone gives
    more than 0.15."""
    most_unreadable: float = Field(0.5, ge=0, le=1)
    """A share of patches with an unreadable first word above this is a sign of failure; the value is the paper's. By
    chance, half of the words that LLMs choose from can't be read: compare it with `readable_by_chance`."""
