"""The base class of the settings of stages with a model, and helpers for the files of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.roles import ROLES
from pad_pipeline.weights import ModelFile, fetch_file, fetch_folder, file_sha256, folder_sha256, is_file_reference

if TYPE_CHECKING:
    from torch import nn

    from pad_pipeline.images import DecodeSettings
    from pad_pipeline.stages.base import Stage
    from pad_pipeline.stages.compute import ComputeSettings


class StageSettings(BaseModel, ABC):
    """Settings of a stage with a model. A subclass lists, hashes and checks the model's files, and makes the stage.

    `fingerprints`, `check` and `make` fetch missing files, and raise `UserError` if a file can't be used, can't be
    fetched, or has another sha256 than the settings say.
    """

    model_config = ConfigDict(extra="forbid")

    section: ClassVar[str]
    """The section of a models file (TOML) that holds these settings; a key of `ROLES`."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that hold a path. A relative path is relative to the models file."""
    on_gpu: ClassVar[bool] = True
    """Whether the model computes on the GPU, if there is one. Other models share the workers that decode."""
    pins: ClassVar[dict[str, str]] = {}
    """Name of a setting that holds a path -> name of the setting that holds the sha256 of the file."""

    batch_size: int = Field(8, gt=0)
    """Images in one call of the model."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that the stage does, one after another in `STEPS`."""
        return ROLES[self.section]

    @property
    def name(self) -> str:
        """The `name` of the stage: its last step."""
        return self.steps[-1]

    @property
    def code_version(self) -> str:
        """The version of the code of a user's own class; empty for pad's models."""
        return ""

    @abstractmethod
    def files(self) -> list[ModelFile]:
        """Return the files that the stage reads, without fetching them."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Return the sha256 of each file that affects results, by the file's name in run.json."""

    @abstractmethod
    def check(self) -> str:
        """Read and check the files as a build does, and return a short description of the model."""

    @abstractmethod
    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make the stage, with its model on the device."""


def fetch_file_or_folder(file: ModelFile, patterns: list[str]) -> Path:
    """Fetch a checkpoint file or a model folder of transformers, check its sha256, and return its path.

    For a folder, the sha256 is that of `model.safetensors`, and only files that match `patterns` are fetched.

    Raises:
        UserError: the file or folder is missing, can't be fetched, or has another sha256 than the settings say.
    """
    if is_file_reference(file.reference):
        return fetch_file(file.field, file.reference, file.sha256)
    folder = fetch_folder(file.field, file.reference, file.revision, patterns)
    if file.sha256:
        fetch_file(file.field, str(folder / "model.safetensors"), file.sha256)
    return folder


def path_sha256(path: Path, patterns: list[str]) -> str:
    """Return the sha256 of a checkpoint, or of the files of a folder that match `patterns`."""
    return folder_sha256(path, patterns) if path.is_dir() else file_sha256(path)


def millions(model: nn.Module) -> str:
    """Return the number of a model's parameters as text, such as `12.3 M parameters`."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters"
