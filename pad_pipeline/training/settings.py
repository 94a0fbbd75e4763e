"""Every choice of a stage-1 training, with LLaVA-1.5's values where it has one and the paper's where that has one."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.geometry import PatchRule


class PatchLossSettings(BaseModel):
    """The choices that the paper leaves open in L_patch."""

    model_config = ConfigDict(extra="forbid")

    average: Literal["token", "region"] = "token"
    """`token`: over all pairs of patch and region in the batch, so large regions count more. `region`: each region's
    own mean first, so all regions count the same."""


class TrainSettings(BaseModel):
    """Stage 1: the projector learns; vision tower and LLM are frozen."""

    model_config = ConfigDict(extra="forbid")

    projector: Literal["mlp", "linear"] = "mlp"
    """`mlp`: Linear, GELU, Linear (LLaVA's mlp2x_gelu). `linear`: one Linear."""
    vision_layer: int = -2
    """Hidden state of the vision tower that is projected; its CLS token is dropped."""
    batch_size: int = Field(256, gt=0)
    """Samples in one step of the optimiser; all of them where there are fewer."""
    micro_batch: int = Field(8, gt=0)
    """Samples computed at a time; the losses do not depend on it."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    steps: int = Field(0, ge=0)
    """Steps of the optimiser; 0 for as many as `epochs` gives."""
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """After warm-up; it falls to 0 along half a cosine."""
    warmup: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    beta_start: float = Field(0.0, ge=0, allow_inf_nan=False)
    beta_end: float = Field(5.0, ge=0, allow_inf_nan=False)
    """L = L_caption + beta * L_patch, where beta goes linearly from start to end over the steps (the paper: 0 to 5)."""
    patches: PatchRule = "soft"
    """Which patches belong to a region (`PatchRule` in pad_pipeline/geometry.py): by the share that it covers of them,
    or wholly: `any`, `half`, `argmax`."""
    patch_loss: PatchLossSettings = PatchLossSettings()
    max_length: int = Field(2048, gt=0)
    """Tokens of a sequence, image included; longer captions are cut at the end."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Of the projector's start and of the order of samples."""
    loader_threads: int = Field(4, gt=0)
    """Threads that read and decode images ahead of the model."""

    def beta(self, step: int, steps: int) -> float:
        """The weight of L_patch in step `step` (from 0) of `steps`: `beta_start` first, `beta_end` last."""
        return self.beta_start + (self.beta_end - self.beta_start) * step / max(steps - 1, 1)
