"""A training: what is trained on what, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pad_pipeline.facts import differences
from pad_pipeline.geometry import Fit
from pad_pipeline.storage import resolved
from pad_pipeline.training.settings import Stage2Settings, TrainSettings

_FREE = {
    "out", "wandb", "settings.micro_batch", "settings.loader_threads", "settings.compile", "settings.lora.merge",
    "settings.activation_checkpointing",
    "settings.checkpoint_every", "settings.keep_checkpoints",
}  # fmt: skip
"""What a training may be continued with another of: it decides no number, but for the last digits."""


class Job(BaseModel):
    """A training: what is trained on what, and how."""

    model_config = ConfigDict(extra="forbid")

    stage: int
    vision: str
    """Folder or hub name of the vision tower."""
    llm: str
    """Folder or hub name of the LLM."""
    out: str
    """Gets `training.json`, `log.jsonl`, `checkpoints/`, `mm_projector.bin` and the Hugging Face folder `hf/`."""
    shards: str = ""
    """What `pad build` or `pad import` wrote; or else"""
    data: str = ""
    """a LLaVA JSON."""
    image_root: str = ""
    """What the JSON's images are relative to; empty for the folder that it lies in."""
    fit: Fit = "pad"
    """How a JSON's images are made square; shards say it themselves."""
    init: str = ""
    """A `mm_projector.bin` to begin with."""
    wandb: str = ""
    """The project of Weights & Biases that gets the log's figures; empty for none."""
    settings: Stage2Settings | TrainSettings

    @field_validator("vision", "llm", "shards", "data", "image_root", "init")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """A local path is the same training from whatever folder it is started, and in workers that run in another."""
        return resolved(value) if value and Path(value).exists() else value

    def differences(self, facts: Any) -> list[str]:
        """What a run with these facts did otherwise, but for what decides no number."""
        return differences(facts, self.facts(), _FREE)

    def facts(self) -> dict[str, Any]:
        """As it is written into training.json."""
        return self.model_dump(mode="json")
