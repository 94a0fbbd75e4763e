"""Measure a trained model for an experiment, with the analyses of `pad analyze` and the recipe's own scores."""

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
    """The template of its training: with `plain` it captions images; with the others it answers questions."""
    heldout: str
    """Folder or URL of shards of images that it was not trained on."""
    limit: int | None
    """Greatest number of images, from the first on; None for all."""


class Score(BaseModel):
    """A user's function that scores a trained model."""

    model_config = ConfigDict(extra="forbid")

    function: str
    """The function, as `package.module:name`. It gets a `Trained` and the settings, and returns numbers by name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The function's keyword arguments."""


def find_function(name: str, score: Score) -> Callable[..., dict[str, float]]:
    """Import the function of the score called `name`.

    Raises:
        UserError: it can't be imported, or is no function.
    """
    module, _, attribute = score.function.partition(":")
    try:
        found: Callable[..., dict[str, float]] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module can raise anything
        rule = f"it can't be imported ({type(error).__name__}: {str(error)[:200]})"
        remedy = "write package.module:function, from an installed package or a module on PYTHONPATH"
        raise UserError(f"scores.{name}.function", score.function, rule, remedy) from error
    if not callable(found):
        raise UserError(f"scores.{name}.function", score.function, "it is no function", "name a function")
    return found


def measure(
    names: Sequence[str], scores: dict[str, Score], trained: Trained, settings: AnalysisSettings, out: Path
) -> dict[str, Any]:
    """Return the numbers of the analyses and scores `names`, by name. `settings` and `out` are for the analyses.

    Raises:
        UserError: as in `analyze`; or a score fails, or returns no numbers.
    """
    found: dict[str, Any] = {}
    if studies := [name for name in names if name in STUDIES]:
        found = analyze(studies, Subject(trained.model), trained.heldout, settings, out, trained.limit)
    for name in [name for name in names if name in scores]:
        score = scores[name]
        try:
            numbers = find_function(name, score)(trained, **score.settings)
            found[name] = {key: float(value) for key, value in numbers.items()}
        except UserError:
            raise
        except Exception as error:  # a user's function can raise anything
            rule = f"it fails ({type(error).__name__}: {str(error)[:300]})"
            remedy = "correct it; finished trainings are kept"
            raise UserError(f"scores.{name}.function", score.function, rule, remedy) from error
    return found
