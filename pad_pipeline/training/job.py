"""Describe a training: its models, its data, its settings and its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pad_pipeline.facts import differences
from pad_pipeline.geometry import Fit
from pad_pipeline.storage import resolved
from pad_pipeline.training.settings import Stage2Settings, TrainSettings

_FREE = {
    "out", "wandb", "settings.micro_batch", "settings.loader_threads", "settings.compile", "settings.lora.merge",
    "settings.activation_checkpointing", "settings.checkpoint_every", "settings.keep_checkpoints",
}  # fmt: skip
"""Fields that may differ when a training is continued, because they change no result beyond the last digits."""


def absolute_path(where: str) -> str:
    """Make a local path absolute, because a training may be continued from another folder, and Ray's workers run in
    folders of their own. A URL or the name of a model stays as it is."""
    return resolved(where) if where and Path(where).exists() else where


class Job(BaseModel):
    """One training: its models, its data, its settings and its output folder."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    stage: int = Field(ge=1, le=2)
    """1 trains the projector alone, 2 the LLM too."""
    vision: str
    """Vision tower of CLIP's or SigLIP's type: folder or hub name."""
    llm: str
    """LLM of LLaMA's, Mistral's or Qwen's type: folder or hub name."""
    out: str
    """Output folder: gets `training.json`, `log.jsonl`, `checkpoints/`, `mm_projector.bin` and the Hugging Face folder
    `hf/`."""
    shards: str = ""
    """Folder or URL of PAD shards to train on; either this or `data`."""
    data: str = ""
    """LLaVA JSON of dialogues to train on, with images or without."""
    image_root: str = ""
    """Folder that the images of `data` are relative to; by default the folder that the JSON lies in."""
    fit: Fit = "pad"
    """How the images of `data` are made square, see `View`; shards bring their own fit along."""
    init: str = ""
    """A `mm_projector.bin` to begin with: what stage 1 wrote, or LLaVA's own."""
    wandb: str = ""
    """Project of Weights & Biases that gets the log's figures too; empty for none."""
    settings: Stage2Settings | TrainSettings

    @field_validator("vision", "llm", "shards", "data", "image_root", "init")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute_path(value)

    def differences(self, facts: Any) -> list[str]:
        """List the fields in which an earlier training with these `facts` differs, each as `NAME: OLD -> NEW`, except
        those that change no result."""
        return differences(facts, self.facts(), _FREE)

    def facts(self) -> dict[str, Any]:
        """Return the job as training.json holds it."""
        return self.model_dump(mode="json")
