"""Define the settings of a training. The defaults are the paper's values, or LLaVA-1.5's if the paper has none."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pad_pipeline.geometry import PatchRule
from pad_pipeline.training.template import TemplateName

ProjectorKind = Literal["mlp", "linear", "c-abstractor", "pixel-shuffle"]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {},
    "aligned": {
        "patch_loss": {"kind": "contrastive", "average": "label", "true_labels": "neutral"},
        "beta_start": 1.0,
        "beta_end": 0.0,
    },
}
"""The defaults that each objective stands for, see `TrainSettings.objective`. Stage 2 keeps its own beta."""


class PatchLossSettings(BaseModel):
    """Settings of the loss L_patch. The paper does not give their values."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cosine", "contrastive", "words", "head"] = "cosine"
    """What pulls a vision token to its label. `cosine`: 1 - cosine between token and label (the paper). `contrastive`:
    cross-entropy of the region's label among all labels of the step (SEA, arXiv 2408.11813). `words`: cross-entropy of
    the label's tokens among all input embeddings of the LLM. `head`: cross-entropy of the label's tokens in the LLM's
    output at the vision token (FiVL, arXiv 2412.14672); it runs the LLM."""
    compare: Literal["token", "mean"] = "token"
    """Whether the label is compared with each token of the region, or with the mean of its tokens."""
    average: Literal["token", "region", "label"] = "token"
    """`token`: the mean over all pairs of token and region, so that large regions count more. `region`: the mean over
    regions of each region's mean. `label`: the mean over the step's labels, so that frequent labels count no more than
    rare ones."""
    temperature: float = Field(0.07, gt=0, allow_inf_nan=False)
    """The number by which the kinds `contrastive` and `words` divide cosines."""
    true_labels: Literal["negative", "neutral", "positive"] = "negative"
    """How the contrastive loss treats a token's other true labels, such as those of a part and its thing; `patches`
    says which patches a label is true of. `negative`: they count as wrong. `neutral`: they are not in the denominator.
    `positive`: they count as right."""
    label_tokens: Literal["all", "first"] = "all"
    """The tokens of a label toward which `words` and `head` train: all with equal shares, or the first (FiVL)."""
    largest: float = Field(1.0, gt=0, le=1)
    """Regions that cover more than this share of the view are left out of L_patch (FiVL: 0.3). 1 keeps all."""
    without: tuple[str, ...] = ()
    """Labels whose regions are left out of L_patch, such as `sky`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.compare == "mean" and (self.kind in ("words", "head") or self.true_labels != "negative"):
            raise ValueError(
                'compare = "mean" is for the kinds cosine and contrastive, with true_labels = "negative"; '
                'use compare = "token"'
            )
        if self.true_labels != "negative" and self.kind != "contrastive":
            raise ValueError('true_labels is for kind = "contrastive"; leave it out')
        if self.label_tokens != "all" and not self.needs_words:
            raise ValueError("label_tokens is for the kinds words and head; leave it out")
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss of a region depends on the labels of the whole step."""
        return self.kind == "contrastive" or self.average == "label"

    @property
    def needs_words(self) -> bool:
        """Whether the loss reads the tokens of each label."""
        return self.kind in ("words", "head")


class LoraSettings(BaseModel):
    """Settings of low-rank adapters (LoRA), which are put on all linear layers of the LLM's blocks."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(128, gt=0)
    alpha: int = Field(256, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    merge: bool = True
    """Whether the export merges the adapters into the LLM; else they are in `hf/adapter`, for peft to load."""


class TrainSettings(BaseModel):
    """Settings of training stage 1, which trains only the projector; from LLaVA-1.5's pretrain.sh, with L_patch."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    own_defaults: ClassVar[frozenset[str]] = frozenset()
    """Settings whose defaults no objective changes."""

    objective: Literal["paper", "aligned"] = "paper"
    """Other defaults for L_patch and what belongs to it; a setting that is given explicitly wins. `paper`: as
    published. `aligned`: what our experiments show to be better (docs/paper.md): the contrastive loss, every label with
    the same weight, other true labels neutral, and in stage 1 a beta that falls from 1 to 0."""
    projector: ProjectorKind = "mlp"
    """Kind of projector. `mlp`: Linear, GELU, Linear (LLaVA's mlp2x_gelu). `linear`: one Linear. `c-abstractor`:
    Honeybee's. `pixel-shuffle`: InternVL's, one token for 2 x 2 patches, for towers with an even grid."""
    place: Literal["none", "fixed", "learned"] = "none"
    """What shows the LLM the place of a vision token, beside what the projector says. `none`: nothing (LLaVA). `fixed`:
    sines and cosines of row and column, added behind the projector, see `place_waves`. `learned`: the same at the
    start, then trained. L_patch compares the token without its place."""
    abstractor_tokens: int = Field(144, gt=0)
    """Number of vision tokens for one image, with a C-Abstractor: a square number."""
    vision_layer: int = Field(-2, le=-1)
    """The hidden state of the vision tower that the projector gets, without CLS and registers."""
    llm: Literal["frozen", "full", "lora"] = "frozen"
    """The weights of the LLM that are trained: none, all, or low-rank adapters."""
    lora: LoraSettings = LoraSettings()
    template: TemplateName = "plain"
    """How a conversation becomes token ids, see `TemplateName`."""
    batch_size: int = Field(256, gt=0)
    """Number of samples in one optimizer step, over all ranks; at most all samples."""
    micro_batch: int = Field(8, gt=0)
    """Number of samples that a rank computes at a time. A lower number saves memory and does not change the losses."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Number of passes over the samples."""
    steps: int = Field(0, ge=0)
    """Number of optimizer steps; 0 for the number that follows from `epochs`."""
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """The learning rate after the warm-up; it falls to 0 along half a cosine."""
    projector_learning_rate: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The learning rate of the projector; 0 for `learning_rate`."""
    warmup: float = Field(0.03, ge=0, le=1)
    """The share of the steps in which the learning rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0)
    caption_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """The weight of L_caption; the paper has no such weight. With 0 and a frozen LLM, the LLM is not run,
    unless L_patch reads its output."""
    beta_start: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The weight of L_patch in the first step. L = L_caption + beta(t) L_patch; in the paper, beta goes from 0 to 5."""
    beta_end: float = Field(5.0, ge=0, allow_inf_nan=False)
    """The weight of L_patch in the last step."""
    beta_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How beta goes from `beta_start` to `beta_end`. With `constant`, it is `beta_end` in all steps."""
    patches: PatchRule = "soft"
    """Which patches belong to a region, see `PatchRule`. `soft` weighs each patch by its coverage; `any`, `half` and
    `argmax` select whole patches."""
    patch_loss: PatchLossSettings = PatchLossSettings()
    max_length: int = Field(2048, gt=0)
    """Greatest number of tokens in a sequence, including image tokens. A longer sequence is cut at the end."""
    group_by_length: bool = False
    """Whether a step has samples of similar length, all with an image or all without (LLaVA's
    group_by_modality_length)."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """The training fails if nothing can be learned from more than this share of the samples."""
    activation_checkpointing: bool = False
    """Whether the backward pass computes the LLM's blocks again: a third more work, far less memory."""
    compile: bool = False
    """Whether torch.compile compiles the LLM's blocks: it takes minutes at the start, and makes steps faster."""
    checkpoint_every: int = Field(0, ge=0)
    """Number of steps between two checkpoints; 0 for a twentieth of the training, but at least 50."""
    keep_checkpoints: int = Field(2, gt=0)
    """Number of latest checkpoints that are kept; the best one is kept too."""
    held_out: int = Field(0, ge=0)
    """Number of samples that are not trained on. At each checkpoint, they are measured: their loss shows the best
    checkpoint; Align and the share of vision tokens whose nearest word is readable, each beside its chance, are the
    paper's signs of failure."""
    held_out_every: int = Field(0, ge=0)
    """Number of steps between two measurements of the held-out samples; 0 to measure only at checkpoints."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of the projector's initial weights, of the order of samples and of dropout."""
    loader_threads: int = Field(4, gt=0)
    """Number of threads that read and decode images ahead of the model, on each rank."""

    @model_validator(mode="before")
    @classmethod
    def _with_objective(cls, values: Any) -> Any:
        """Fill in the settings that the objective stands for, where no other value is given."""
        if not isinstance(values, dict):
            return values
        named = OBJECTIVES.get(str(values.get("objective", "paper")), {})
        named = {name: value for name, value in named.items() if name not in cls.own_defaults}
        loss, given = named.get("patch_loss", {}), values.get("patch_loss", {})
        if isinstance(given, dict) and given.get("kind", loss.get("kind")) == loss.get("kind"):
            given = loss | given  # the other settings of a loss make no sense for another kind
        return named | values | ({"patch_loss": given} if given else {})

    @property
    def runs_llm(self) -> bool:
        """Whether the LLM is run: it is trained, L_caption has a weight, or L_patch reads its output."""
        return self.llm != "frozen" or self.caption_weight > 0 or self.patch_loss.kind == "head"

    def beta(self, step: int, steps: int) -> float:
        """Return the weight of L_patch in a step. `step` counts from 0, and `steps` is the number of all steps."""
        share = step / max(steps - 1, 1)
        if self.beta_schedule == "constant":
            share = 1.0
        elif self.beta_schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.beta_start + (self.beta_end - self.beta_start) * share


class Stage2Settings(TrainSettings):
    """Settings of training stage 2, which trains projector and LLM on dialogues; from LLaVA-1.5's finetune.sh."""

    own_defaults: ClassVar[frozenset[str]] = frozenset({"beta_start", "beta_end"})  # no L_patch by default
    llm: Literal["frozen", "full", "lora"] = "full"
    template: TemplateName = "v1"
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(2e-5, gt=0, allow_inf_nan=False)
    beta_end: float = Field(0.0, ge=0, allow_inf_nan=False)
    group_by_length: bool = True


def settings_of(stage: int) -> type[TrainSettings]:
    """Return the settings class of training stage 1 or 2."""
    return Stage2Settings if stage == 2 else TrainSettings
