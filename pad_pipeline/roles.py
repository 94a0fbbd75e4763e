"""The steps of annotation that models do: their names, their order, and what each finds.

This is the one list of them. A new step takes its place in `RedoFrom` and `FINDS`, and a new kind of model in `ROLES`.
"""

from __future__ import annotations

from typing import Literal, get_args

RedoFrom = Literal["tag", "ground", "segment", "patchify"]
"""The first step that is done again when the images come from shards. What earlier steps found there is kept."""
ORDER: tuple[RedoFrom, ...] = get_args(RedoFrom)
"""The steps that can be done again, in the order in which a shard goes through them."""
REQUIRED = ("tag", "ground", "segment")
"""The steps that every build has a model for."""
FINDS = {"tag": "tags", "ground": "boxes and their labels", "segment": "masks"}
"""What each step finds that a model does."""
ROLES: dict[str, tuple[str, ...]] = {
    "tagger": ("tag",),
    "detector": ("ground",),
    "segmenter": ("segment",),
    "grounder": ("tag", "ground"),
}
"""The section of a models file -> the steps that its model does, which are neighbors in `ORDER`."""


def is_redone(steps: tuple[str, ...], redo_from: RedoFrom) -> bool:
    """Return whether a model that does `steps` runs in a build that begins with `redo_from`."""
    return not {*steps} <= {*ORDER[: ORDER.index(redo_from)]}


def section_of(step: str) -> str:
    """Return the section of the model that does `step` and nothing else. run.json has an entry of that name for each
    step, whatever model did it."""
    return next(section for section, steps in ROLES.items() if steps == (step,))
