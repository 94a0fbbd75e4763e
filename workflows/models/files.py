"""List the files that the models of a build need, and check them."""

from __future__ import annotations

from collections.abc import Iterator

from pad_pipeline.errors import UserError
from pad_pipeline.labels import LabelSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile
from pad_pipeline.workflows.models.settings import ModelSettings


def _with_files(models: ModelSettings) -> list[StageSettings | LabelSettings]:
    return [*models.annotators, models.llm]


def files(models: ModelSettings) -> list[ModelFile]:
    """Return all model files that a build with these models reads."""
    return [file for one in _with_files(models) for file in one.files()]


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
