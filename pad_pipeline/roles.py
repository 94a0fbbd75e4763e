"""The steps of annotation that models do: their names, their order, and their results.

These are the only lists of steps. A new step goes into `RedoFrom` and `RESULTS`, a new kind of model into `ROLES`.
"""

from __future__ import annotations

from typing import Literal, get_args

RedoFrom = Literal["tag", "ground", "segment", "patchify"]
"""The first step that is done again if the images come from shards. The results of earlier steps are kept."""
STEPS: tuple[RedoFrom, ...] = get_args(RedoFrom)
"""The steps that can be done again, in the order in which a shard goes through them."""
REQUIRED = ("tag", "ground", "segment")
"""The steps that every build has a model for."""
RESULTS = {"tag": "tags", "ground": "boxes and their labels", "segment": "masks"}
"""The results of each step that a model does, for messages."""
ROLES: dict[str, tuple[str, ...]] = {
    "tagger": ("tag",),
    "detector": ("ground",),
    "segmenter": ("segment",),
    "grounder": ("tag", "ground"),
}
"""The section of a models file -> the steps that its model does, which are neighbors in `STEPS`."""


def is_redone(steps: tuple[str, ...], redo_from: RedoFrom) -> bool:
    """Return whether a build that starts at `redo_from` runs a model that does `steps`."""
    return not {*steps} <= {*STEPS[: STEPS.index(redo_from)]}


def section_of(step: str) -> str:
    """Return the section of a model that does only `step`. run.json has an entry of that name for each step, whichever
    model did it."""
    return next(section for section, steps in ROLES.items() if steps == (step,))
