"""What an experiment measures of a trained model: the analyses of `pad analyze`, and scores that its recipe names."""

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
    """A trained model, and what it is to be measured on."""

    model: Path
    """The folder that `pad train` wrote."""
    template: TemplateName
    """Of its training: after `plain` it goes on from an image with a caption; after another it answers questions."""
    heldout: str
    """Shards of images that it was not trained on: a folder or URL."""
    limit: int | None
    """How many of their images are looked at, the first; None for all."""


class Score(BaseModel):
    """A function that scores a trained model."""

    model_config = ConfigDict(extra="forbid")

    function: str
    """`package.module:name`. It is given a `Trained` and the settings, and returns numbers by name. It is imported
    where the recipe is read, and in each worker."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its other arguments, by name."""


def find_function(name: str, score: Score) -> Callable[..., dict[str, float]]:
    """Import the function of the score called `name`.

    Raises:
        UserError: it can't be imported, or is none.
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
    """Measure a trained model.

    Args:
        names: of analyses and scores.
        scores: those that the recipe names.
        trained: the model.
        settings: of the analyses.
        out: gets the charts and drawings of the analyses.

    Returns:
        The numbers of each analysis and score by its name.

    Raises:
        UserError: as in `analyze`; or a score fails, or returns no numbers.
    """
    found: dict[str, Any] = {}
    if studies := [name for name in names if name in STUDIES]:
        found = analyze(studies, Subject(trained.model), trained.heldout, settings, out, trained.limit)
    for name in (name for name in names if name in scores):
        score = scores[name]
        try:
            numbers = find_function(name, score)(trained, **score.settings)
            found[name] = {key: float(value) for key, value in numbers.items()}
        except UserError:
            raise
        except Exception as error:  # it is somebody's own code
            rule = f"it fails ({type(error).__name__}: {str(error)[:300]})"
            raise UserError(
                f"scores.{name}.function", score.function, rule, "correct it; trainings are kept"
            ) from error
    return found
