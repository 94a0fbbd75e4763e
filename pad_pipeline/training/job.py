"""Describe a training: its models, its data, its settings and its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pad_pipeline.geometry import Fit
from pad_pipeline.storage import is_url
from pad_pipeline.training.settings import Stage2Settings, TrainSettings

_FREE = {
    "out", "wandb", "settings.micro_batch", "settings.loader_threads", "settings.compile", "settings.lora.merge",
    "settings.activation_checkpointing",
    "settings.checkpoint_every", "settings.keep_checkpoints",
}  # fmt: skip
"""Fields that may differ when a training is continued, because they change no result beyond the last digits."""


class Job(BaseModel):
    """One training: its models, its data, its settings and its output folder."""

    model_config = ConfigDict(extra="forbid")

    stage: int
    """Training stage, 1 or 2."""
    vision: str
    """Folder or hub name of the vision tower."""
    llm: str
    """Folder or hub name of the LLM."""
    out: str
    """Output folder: gets `training.json`, `log.jsonl`, `checkpoints/`, `mm_projector.bin` and the Hugging Face folder
    `hf/`."""
    shards: str = ""
    """Folder or URL of a run that `pad build` or `pad import` wrote; empty where `data` is given."""
    data: str = ""
    """Path or URL of a LLaVA JSON; empty where `shards` is given."""
    image_root: str = ""
    """Folder that the JSON's image paths are relative to; empty for the JSON's own folder."""
    fit: Fit = "pad"
    """How the images of a JSON are made square; shards bring their own fit along."""
    init: str = ""
    """A `mm_projector.bin` that the training starts from; empty for a new projector."""
    wandb: str = ""
    """The project of Weights & Biases that gets the log's figures; empty for none."""
    settings: Stage2Settings | TrainSettings

    @field_validator("vision", "llm", "shards", "data", "image_root", "init")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """Make a local path absolute, because the same training may be continued from another folder, and the workers
        of Ray Train run in folders of their own."""
        return str(Path(value).resolve()) if value and not is_url(value) and Path(value).exists() else value

    def differences(self, facts: dict[str, Any]) -> list[str]:
        """List the fields in which an earlier training with these `facts` differs, except those that change no result.

        Returns:
            One text for each, `NAME: OLD -> NEW`.
        """
        old, new = _flat(facts), _flat(self.facts())
        names = sorted(set(old) | set(new))
        return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if n not in _FREE and old.get(n) != new.get(n)]

    def facts(self) -> dict[str, Any]:
        """Return the job as training.json holds it."""
        return self.model_dump(mode="json")


def _flat(facts: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: `{"lora": {"rank": 8}}` becomes `{"lora.rank": 8}`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat
