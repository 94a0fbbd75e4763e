"""The files that a choice of models needs, and the check of these files: `pad models`."""

from __future__ import annotations

from collections.abc import Iterator

from pad_pipeline.errors import UserError
from pad_pipeline.weights import ModelFile
from pad_pipeline.workflows.models.catalog import BY_REFERENCE, FOLDER_MEGABYTES
from pad_pipeline.workflows.models.settings import ModelSettings


def files(models: ModelSettings) -> list[ModelFile]:
    """Return all model files that a build with these models reads."""
    return [file for one in models.with_files for file in one.files()]


def megabytes(file: ModelFile) -> int | None:
    """Return the approximate size of an official file; None if it is not known."""
    official = BY_REFERENCE.get(file.reference)
    return official.megabytes if official else FOLDER_MEGABYTES.get(file.reference)


def check(models: ModelSettings) -> Iterator[tuple[str, str, UserError | None]]:
    """Read the files of each model strictly, as a build does. Nothing is fetched.

    Yields:
        The section of a model, a description of its files, and None; or the section, an empty text, and the error.
    """
    for one in models.with_files:
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
