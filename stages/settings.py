"""The base of the settings of a stage that holds a model: all that is known of the stage before it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.roles import ROLES
from pad_pipeline.weights import ModelFile

if TYPE_CHECKING:
    from pad_pipeline.images import DecodeSettings
    from pad_pipeline.stages.base import Stage
    from pad_pipeline.stages.compute import ComputeSettings


class StageSettings(BaseModel, ABC):
    """Settings of a stage that holds a model. A subclass says which files it names, what these hash to, whether they
    are right, and how the stage is made; nothing else in the project needs to know the subclass."""

    model_config = ConfigDict(extra="forbid")

    section: ClassVar[str]
    """Name of its section in a models file, a key of `ROLES`."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Settings that name a file or a folder. A relative path is relative to the models file."""
    pins: ClassVar[dict[str, str]] = {}
    """Setting that names a file -> setting that holds the sha256 of this file."""

    batch_size: int = Field(8, gt=0)
    """Images in one call of the model."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that the stage does, neighbors in `ORDER`."""
        return ROLES[self.section]

    @property
    def name(self) -> str:
        """`Stage.name` of the stage: its last step."""
        return self.steps[-1]

    @property
    def code_version(self) -> str:
        """Version of the code of a class of the user's own; empty for a model of pad."""
        return ""

    @abstractmethod
    def files(self) -> list[ModelFile]:
        """Return the files that the stage reads. Nothing is fetched."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Return the sha256 of each file that decides results, by a name for run.json. Missing files are fetched.

        Raises:
            UserError: a file is not there, can't be reached, or is not the one that is pinned.
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


def millions(model: object) -> str:
    """Return the number of parameters of a `torch.nn.Module` as text, such as `12.3 M parameters`."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters"  # type: ignore[attr-defined]
