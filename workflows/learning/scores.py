"""Measure a trained model for an experiment: the analyses of `pad analyze`, and the scores that its recipe names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.errors import UserError
from pad_pipeline.training.template import TemplateName
from pad_pipeline.workflows.learning.analyze import analyze


class Trained(NamedTuple):
    """A trained model, and the images that it is measured on."""

    model: Path
    """The folder that `pad train` wrote."""
    template: TemplateName
    """Template of its training: after `plain` it captions images; after another it answers questions."""
    heldout: str
    """Shards of images that it was not trained on: a folder or URL."""
    limit: int | None
    """Number of images that are looked at, from the first on; None for all."""


class Score(BaseModel):
    """A function that scores a trained model."""

    model_config = ConfigDict(extra="forbid")

    function: str
    """The function, as `package.module:name`. It gets a `Trained` and the settings, and returns numbers by name. It is
    imported when the recipe is read, and in each worker."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its other arguments, by name."""


def find_function(name: str, score: Score) -> Callable[..., dict[str, float]]:
    """Import the function of the score called `name`.

    Raises:
        UserError: it can't be imported, or is no function.
    """
    module, _, attribute = score.function.partition(":")
    try:
        found: Callable[..., dict[str, float]] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever somebody's module does when it is imported
        rule = f"it can't be imported ({type(error).__name__}: {str(error)[:200]})"
        remedy = "write package.module:function, of a package that is installed or a module on PYTHONPATH"
        raise UserError(f"scores.{name}.function", score.function, rule, remedy) from error
    if not callable(found):
        raise UserError(f"scores.{name}.function", score.function, "it is no function", "name a function")
    return found


def measure(
    names: Sequence[str], scores: dict[str, Score], trained: Trained, settings: AnalysisSettings, out: Path
) -> dict[str, Any]:
    """Return the numbers of each analysis and score in `names`, by its name. `scores` are those that the recipe names;
    `settings` are those of the analyses, whose charts and drawings go into `out`.

    Raises:
        UserError: as in `analyze`; or a score fails, or returns no numbers.
    """
    found: dict[str, Any] = {}
    if studies := [name for name in names if name in STUDIES]:
        found = analyze(studies, Subject(trained.model), trained.heldout, settings, out, trained.limit)
    for name, score in ((name, scores[name]) for name in names if name in scores):
        try:
            numbers = find_function(name, score)(trained, **score.settings)
            found[name] = {key: float(value) for key, value in numbers.items()}
        except UserError:
            raise
        except Exception as error:  # it is somebody's own code
            rule, remedy = f"it fails ({type(error).__name__}: {str(error)[:300]})", "correct it; trainings are kept"
            raise UserError(f"scores.{name}.function", score.function, rule, remedy) from error
    return found
