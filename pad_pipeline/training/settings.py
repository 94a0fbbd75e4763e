"""The settings of a training. The defaults are LLaVA-1.5's values, and the paper's where the paper names one."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.geometry import PatchRule
from pad_pipeline.training.template import TemplateName

ProjectorKind = Literal["mlp", "linear", "c-abstractor"]


class PatchLossSettings(BaseModel):
    """The choices in L_patch that the paper leaves open."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cosine", "contrastive"] = "cosine"
    """`cosine`: 1 - cosine to the label (the paper). `contrastive`: cross-entropy of the right label among all labels
    of the step (as in SEA, arXiv 2408.11813)."""
    compare: Literal["token", "mean"] = "token"
    """What is compared with the label: each token of the region, or the mean of its tokens."""
    average: Literal["token", "region"] = "token"
    """`token`: over all pairs of patch and region in the step, so large regions count more. `region`: each region's own
    mean first, so all regions count the same."""
    temperature: float = Field(0.07, gt=0, allow_inf_nan=False)
    """Cosines are divided by it, in the contrastive loss."""


class LoraSettings(BaseModel):
    """Low-rank adapters on all linear layers of the LLM's blocks (LLaVA-1.5's values)."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(128, gt=0)
    alpha: int = Field(256, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    merge: bool = True
    """Whether `hf/` has the adapters merged into the LLM; else they lie apart, in `hf/adapter`, for peft to load."""


class TrainSettings(BaseModel):
    """Settings of training stage 1, which trains the projector alone: those of LLaVA-1.5's pretrain.sh, and the patch
    loss."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    projector: ProjectorKind = "mlp"
    """Kind of projector. `mlp`: Linear, GELU, Linear (LLaVA's mlp2x_gelu). `linear`: one Linear. `c-abstractor`:
    Honeybee's."""
    abstractor_tokens: int = Field(144, gt=0)
    """Vision tokens that a C-Abstractor makes of an image; a square number. Masks are pooled to its grid."""
    vision_layer: int = Field(-2, le=-1)
    """Hidden state of the vision tower that is projected; a CLS token is dropped."""
    llm: Literal["frozen", "full", "lora"] = "frozen"
    """Which weights of the LLM learn beside the projector: none, all, or low-rank adapters."""
    lora: LoraSettings = LoraSettings()
    template: TemplateName = "plain"
    """How a conversation becomes a sequence, see `TemplateName`."""
    batch_size: int = Field(256, gt=0)
    """Samples in one step of the optimizer, over all ranks; all of them where there are fewer."""
    micro_batch: int = Field(8, gt=0)
    """Samples that a rank computes at a time; lower it if memory runs out, the losses do not depend on it."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the samples."""
    steps: int = Field(0, ge=0)
    """Steps of the optimizer; 0 for as many as `epochs` gives."""
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Learning rate after the warm-up; it falls to 0 along half a cosine."""
    projector_learning_rate: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The projector's own; 0 for the same."""
    warmup: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0)
    caption_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Of L_caption; the paper has none. 0 with a frozen LLM: the patch loss alone, and the LLM is not even run."""
    beta_start: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the patch loss in the first step: L = L_caption + beta(t) L_patch; the paper: beta from 0 to 5."""
    beta_end: float = Field(5.0, ge=0, allow_inf_nan=False)
    """Weight of the patch loss in the last step."""
    beta_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How beta goes from start to end over the steps; `constant` is the end from the first step on."""
    patches: PatchRule = "soft"
    """Which patches belong to a region (`PatchRule` in pad_pipeline/geometry.py): by the share that it covers of them,
    or wholly: `any`, `half`, `argmax`."""
    patch_loss: PatchLossSettings = PatchLossSettings()
    max_length: int = Field(2048, gt=0)
    """Tokens of a sequence, image included; longer ones are cut at the end."""
    group_by_length: bool = False
    """Samples of like length, all with an image or all without, share a step (LLaVA's group_by_modality_length)."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """Share of the samples from which nothing can be learned (no answer, no image, cut away); more are an error."""
    activation_checkpointing: bool = False
    """Compute the LLM's blocks a second time in the backward pass: a third more work, far less memory."""
    compile: bool = False
    """Compile the LLM's blocks (torch.compile): minutes at the start, faster steps."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between two checkpoints; 0 for a twentieth of the training, 50 at least."""
    keep_checkpoints: int = Field(2, gt=0)
    """The latest ones that are kept, beside the best."""
    held_out: int = Field(0, ge=0)
    """Samples that are not trained on; their losses are measured at each checkpoint and say which is the best. So are
    Align and the share of patches whose nearest word can be read: the paper's signs of failure."""
    held_out_every: int = Field(0, ge=0)
    """Steps between two looks at them; 0 for checkpoints alone."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of the projector's first weights, of the order of samples and of dropout."""
    loader_threads: int = Field(4, gt=0)
    """Threads that read and decode images ahead of the model, on each rank."""

    @property
    def runs_llm(self) -> bool:
        """Whether the LLM is run at all: not where it is frozen and the caption loss has no weight."""
        return self.llm != "frozen" or self.caption_weight > 0

    def beta(self, step: int, steps: int) -> float:
        """Return the weight of L_patch in step `step` (from 0) of `steps`: `beta_start` first, `beta_end` last."""
        share = step / max(steps - 1, 1)
        if self.beta_schedule == "constant":
            share = 1.0
        elif self.beta_schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.beta_start + (self.beta_end - self.beta_start) * share


class Stage2Settings(TrainSettings):
    """Settings of training stage 2, which trains projector and LLM on dialogues: those of LLaVA-1.5's finetune.sh."""

    llm: Literal["frozen", "full", "lora"] = "full"
    template: TemplateName = "v1"
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(2e-5, gt=0, allow_inf_nan=False)
    beta_end: float = Field(0.0, ge=0, allow_inf_nan=False)
    group_by_length: bool = True


def settings_of(stage: int) -> type[TrainSettings]:
    """Return the class of a training stage's settings, with the defaults of that stage."""
    return Stage2Settings if stage == 2 else TrainSettings
