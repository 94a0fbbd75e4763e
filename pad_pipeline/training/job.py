"""Describe a training by its models, its data, its settings and its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit
from pad_pipeline.storage import resolved
from pad_pipeline.training.settings import Stage2Settings, TrainSettings

MAY_DIFFER = {
    "out", "wandb", "private_addresses", "settings.micro_batch", "settings.loader_threads", "settings.compile",
    "settings.lora.merge", "settings.activation_checkpointing", "settings.checkpoint_every",
    "settings.keep_checkpoints",
}  # fmt: skip
"""Fields that may change when a training is continued: they change no result beyond the last digits."""


AbsolutePath = Annotated[str, AfterValidator(lambda path: resolved(path) if path and Path(path).exists() else path)]
"""A URL, the name of a model, or a local path. A path is made absolute: a training may be continued from another
folder, and Ray's workers run in folders of their own."""


class Job(BaseModel):
    """One training."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    stage: int = Field(ge=1, le=2)
    """The training stage: 1 trains only the projector, 2 also the LLM."""
    vision: AbsolutePath
    """Folder or hub name of the vision tower: CLIP, SigLIP, SigLIP 2 of fixed size, DINOv2, DINOv3 or TIPSv2."""
    llm: AbsolutePath
    """Folder or hub name of the LLM: a causal decoder of transformers for text, such as Vicuna, Mistral or Qwen."""
    out: str
    """Output folder for `training.json`, `log.jsonl`, `checkpoints/`, `mm_projector.bin` and the Hugging Face model
    `hf/`."""
    shards: AbsolutePath = ""
    """Folder or URL of the PAD shards to train on; give either `shards` or `data`."""
    data: AbsolutePath = ""
    """LLaVA JSON of dialogues to train on, with images or without."""
    image_root: AbsolutePath = ""
    """Folder that the images of `data` are relative to; by default the folder of the JSON."""
    private_addresses: bool = False
    """Read images that `data` names by URLs of this machine or of a private network. The server of `image_root` is read
    anyway."""
    fit: Fit = "pad"
    """How the images of `data` are made square: cropped, padded with the mean color, or stretched. Shards have
    their own fit."""
    init: AbsolutePath = ""
    """A `mm_projector.bin` of stage 1 or of LLaVA, with which the training begins; empty for a new projector."""
    wandb: str = ""
    """Project of Weights & Biases that gets the log's figures; empty for none."""
    settings: Stage2Settings | TrainSettings

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.shards) == bool(self.data):
            rule = "a training reads either `shards` or `data`"
            raise UserError("shards", self.shards or "none", rule, "give one of them: PAD shards, or a LLaVA JSON")
        if self.image_root and not self.data:
            raise UserError("image_root", self.image_root, "it goes with `data` only", "leave it out")
        return self
