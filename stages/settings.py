"""The base of the settings of a stage with a model: all that the rest of pad needs to know before the stage is made."""

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
    """Settings of a stage with a model. A subclass lists its files, hashes and checks them, and makes the stage, so
    that nothing else in the project needs to know the subclass."""

    model_config = ConfigDict(extra="forbid")

    section: ClassVar[str]
    """The section of a models file that has these settings, a key of `ROLES`."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Settings that name a file or a folder. A relative path is relative to the models file."""
    pins: ClassVar[dict[str, str]] = {}
    """The name of a setting that names a file -> the name of the setting that holds the file's sha256."""

    batch_size: int = Field(8, gt=0)
    """Images in one call of the model."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that the stage does; they are neighbors in `STEPS`."""
        return ROLES[self.section]

    @property
    def name(self) -> str:
        """The stage's `Stage.name`: its last step."""
        return self.steps[-1]

    @property
    def code_version(self) -> str:
        """Version of the code of a user's own class; empty for a model of pad."""
        return ""

    @abstractmethod
    def files(self) -> list[ModelFile]:
        """Return the files that the stage reads. Nothing is fetched."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Return the sha256 of each file that affects results, by its name in run.json. Missing files are fetched.

        Raises:
            UserError: a file is not there, can't be reached, or does not have the pinned sha256.
        """

    @abstractmethod
    def check(self) -> str:
        """Read the files strictly, as a build does, and describe in a few words what they hold.

        Raises:
            UserError: a file can't be used.
        """

    @abstractmethod
    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make the stage, with its model on the device. Missing files are fetched.

        Raises:
            UserError: a file can't be used.
        """


def fetch_file_or_folder(file: ModelFile, patterns: list[str]) -> Path:
    """Return the checkpoint, or the folder of a model of transformers, that a setting names: fetched, and checked
    against the pinned sha256, which for a folder is that of `model.safetensors`. Of a folder on the hub, only files
    that match `patterns` are fetched.

    Raises:
        UserError: it is not there, can't be reached, or does not have the pinned sha256.
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
