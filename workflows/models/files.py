"""List the files that the models of a build need, and check them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.labels import LabelSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile
from pad_pipeline.workflows.models.catalog import GATED, LICENSES, MEGABYTES, WHOLE_MEGABYTES
from pad_pipeline.workflows.models.settings import ModelSettings


def _with_files(models: ModelSettings) -> list[StageSettings | LabelSettings]:
    return [*models.annotators, models.llm]


def files(models: ModelSettings) -> list[ModelFile]:
    """Return all model files that a build with these models reads."""
    return [file for one in _with_files(models) for file in one.files()]


class Listed(NamedTuple):
    """A model file, with what is known about it."""

    field: str
    reference: str
    megabytes: int | None
    """What a build fetches; None if it is not known."""
    whole_megabytes: int | None
    """The same from a server that sends whole files only."""
    license: str
    """Empty if it is not known for sure."""
    gated: bool | None
    """Whether it is given only to those who accept its license; None if it is not known."""
    revision: str
    """The commit or branch that is fetched; empty for the hub's default, and for files that have none."""
    sha256: dict[str, str]
    """Name of a file -> the hash that it must have."""
    path: Path | None
    """The path on this machine; None if it was not fetched."""

    @property
    def pinned(self) -> str:
        """The pin in words."""
        if self.reference.startswith("miniature:"):
            return "comes with pad"
        parts = [f"revision {self.revision[:8]}"] if self.revision else []
        parts += [f"sha256 {found[:12]}..." for found in self.sha256.values()]
        return ", ".join(parts) or "no pin"


def listed(found: Iterable[ModelFile]) -> list[Listed]:
    """Return what is known about model files."""
    return [
        Listed(
            file.field,
            file.reference,
            MEGABYTES.get(file.reference),
            WHOLE_MEGABYTES.get(file.reference),
            LICENSES.get(file.reference, ""),
            file.reference in GATED if file.reference in MEGABYTES.keys() | LICENSES else None,
            file.pin["revision"],
            file.pin["sha256"],
            file.path,
        )
        for file in found
    ]


def check(models: ModelSettings) -> Iterator[tuple[str, str, UserError | None]]:
    """Read the files of each model strictly, as a build does. Nothing is fetched.

    Yields:
        For each model: its section, a description of its files (empty on an error), and the error if there is one.
    """
    for one in _with_files(models):
        try:
            for file in one.files():
                if file.path is None:
                    rule = "it is not on this machine"
                    raise UserError(file.field, file.reference, rule, "run `pad models fetch`, or correct the path")
            yield one.section, one.check(), None
        except UserError as error:
            yield one.section, "", error
        except Exception as error:  # libraries may raise anything for files of unknown origin
            rule = f"it can't be used ({type(error).__name__}: {str(error)[:200]})"
            yield one.section, "", UserError(one.section, "its files", rule, "fetch the model again")
