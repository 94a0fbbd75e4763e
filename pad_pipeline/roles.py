"""The steps of annotation that models do: names, order, and results; and which kind of model does which steps.

There are no other lists of steps. A new step goes into `RedoFrom` and `RESULTS`, a new kind of model into `ROLES`.
"""

from __future__ import annotations

from typing import Literal, get_args

RedoFrom = Literal["tag", "captions", "ground", "segment", "patchify"]
"""The step at which a build on existing shards starts. The results of earlier steps are kept."""
STEPS: tuple[RedoFrom, ...] = get_args(RedoFrom)
"""The steps of `RedoFrom`, in the order in which a shard goes through them."""
REQUIRED = (("tag", "captions"), ("ground",), ("segment",))
"""Every build has a model for at least one step of each group."""
RESULTS = {"tag": "tags", "captions": "tags from captions", "ground": "boxes and their labels", "segment": "masks"}
"""The name of each step's results in messages, for the steps that a model does."""
ROLES: dict[str, tuple[str, ...]] = {
    "tagger": ("tag",),
    "captions": ("captions",),
    "detector": ("ground",),
    "segmenter": ("segment",),
    "concepts": ("ground", "segment"),
    "grounder": ("tag", "captions", "ground"),
}
"""For each section of a models file, the steps that its model does: a run of neighbors in `STEPS`."""


def is_redone(steps: tuple[str, ...], redo_from: RedoFrom) -> bool:
    """Return whether a build that starts at `redo_from` runs a model that does `steps`."""
    return not {*steps} <= {*STEPS[: STEPS.index(redo_from)]}


def section_of(step: str) -> str:
    """Return the section of a model that does only `step`; run.json uses this name for the step in any case."""
    return next(section for section, steps in ROLES.items() if steps == (step,))
