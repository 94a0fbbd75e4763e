"""Reads from a run.json how the regions of a run were made: with which models or annotation file, and which edits.

A merged run has several origins. With `redo_from`, the stages of one origin come from several runs. A run.json may
have unknown authors, so entries of an unexpected form are ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.roles import RESULTS, ROLES, STEPS, section_of
from pad_pipeline.shards.run import RUN_NAME, Run

_REFERENCES = ("weights", "model", "llm")
"""The names of settings that name a model. Each section has one of them."""
_DECIDING = (
    "threshold", "thresholds", "box_threshold", "text_threshold", "alternates", "nms_iou", "nms_iou_across_labels",
    "min_size", "unboxable", "mask_threshold",
)  # fmt: skip
"""Settings that decide which results of a model are kept."""


class Model(NamedTuple):
    """A model that a run was made with."""

    section: str
    """A key of `ROLES`, such as `tagger`; or `llm`."""
    name: str
    """The path, URL or hub name in the settings; for a user's own model, its class."""
    hashes: dict[str, str]
    """The sha256 of the weights, under an empty name; for a user's own model, its fingerprints by name."""
    deciding: dict[str, Any]
    """The settings that decide which results are kept; for a user's own model, all settings that are numbers."""


class Origin(NamedTuple):
    """The models and edits that made the regions of all images of a run, or of some images of a merged run."""

    models: dict[str, Model]
    """The model of each annotation step. The results of other steps came from an annotation file."""
    edits: list[dict[str, Any]]
    """The settings of each later `pad retarget`, in order."""


def origins(run: Run) -> list[Origin]:
    """Return the distinct origins of a run's regions; raise `UserError` if the settings are nested too deep."""
    try:
        every = _origins(run.settings, run.fingerprints)
    except RecursionError as error:
        raise UserError(RUN_NAME, "settings", "they are nested too deep", "use the run.json that pad wrote") from error
    return [origin for position, origin in enumerate(every) if origin not in every[:position]]


def models(run: Run) -> list[tuple[str, Model]]:
    """Return each model of a run with a title: its section, or `NUMBER: section` if there are several origins."""
    distinct = origins(run)
    named = [
        (f"{number}: {model.section}" if len(distinct) > 1 else model.section, model)
        for number, origin in enumerate(distinct, 1)
        for model in {id(model): model for model in origin.models.values()}.values()  # a model may do several steps
    ]
    words = _model("llm", run.settings.get("llm"), {"llm": run.fingerprints.get("llm_embedding")})
    return [*named, ("word embeddings", words)] if words else named


def _origins(settings: dict[str, Any], fingerprints: dict[str, Any]) -> list[Origin]:
    if isinstance(parts := settings.get("merged"), list):
        runs = [_object(part) for part in parts]
        every = [o for run in runs for o in _origins(_object(run.get("settings")), _object(run.get("fingerprints")))]
    else:
        every = [Origin(_models(settings, fingerprints), [])]
        earlier, redone = _object(settings.get("earlier")), settings.get("redo_from")
        if earlier and redone in STEPS:
            kept = STEPS[: STEPS.index(redone)]
            new = {step: model for step, model in every[0].models.items() if step not in kept}
            every = [
                Origin(
                    {step: model for step, model in origin.models.items() if step in kept} | new,
                    origin.edits if "ground" in kept else [],  # new boxes replace the edited regions
                )
                for origin in _origins(_object(earlier.get("settings")), earlier)
            ]
    edits = settings.get("edits")
    later = [_object(edit) for edit in edits] if isinstance(edits, list) else []
    return [Origin(origin.models, [*origin.edits, *later]) for origin in every]


def _models(settings: dict[str, Any], fingerprints: dict[str, Any]) -> dict[str, Model]:
    """Return the models of a build by annotation step; empty for an import."""
    entries = {step: settings.get(section_of(step)) for step in RESULTS}
    by_step: dict[str, Model] = {}
    for section, steps in sorted(ROLES.items(), key=lambda role: -len(role[1])):
        first = entries[steps[0]]
        # A model that does several steps has equal settings in the sections of all of them; other models differ.
        alike = steps[0] not in by_step and all(entries[step] == first for step in steps)
        if alike and (model := _model(section, first, fingerprints)):
            by_step |= dict.fromkeys(steps, model)
    return {step: by_step[step] for step in RESULTS if step in by_step}


def _model(section: str, entry: object, fingerprints: dict[str, Any]) -> Model | None:
    if not isinstance(entry, dict):
        return None
    texts = {name: value for name, value in fingerprints.items() if isinstance(value, str)}
    deciding = {name: entry[name] for name in _DECIDING if entry.get(name) not in (None, "")}
    if "threshold" in deciding:
        deciding.pop("thresholds", None)  # `threshold` replaces the file
    if "class" in entry:
        prefix = f"{section}_"
        hashes = {name.removeprefix(prefix): value for name, value in texts.items() if name.startswith(prefix)}
        numbers = {n: v for n, v in _object(entry.get("settings")).items() if isinstance(v, int | float)}
        return Model(section, str(entry["class"]), hashes, deciding | numbers)
    hashes = {"": texts[section]} if section in texts else {}
    name = next((str(entry[name]) for name in _REFERENCES if name in entry), "unknown")
    return Model(section, name, hashes, deciding)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
