"""What a recipe knows of its stages before their data is there."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class StagePlan(BaseModel):
    """What is known of a stage before its data is there."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(gt=0)
    """The number of samples that a pass reads."""
    teraflops: float = Field(0.0, ge=0)
    """Operations for one sample, in 10^12; 0 if they are not known."""
    gigabytes: float = Field(0.0, ge=0)
    """What a training leaves on disk, in 10^9 bytes."""


class Plan(BaseModel):
    """What is known of an experiment's stages."""

    model_config = ConfigDict(extra="forbid")

    stage1: StagePlan | None = None
    stage2: StagePlan | None = None
