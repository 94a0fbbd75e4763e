"""What made the regions of a run, as its run.json tells: models, or an annotation file; and what was changed since.

A run can have more than one origin (`pad merge`), and an origin the stages of more than one run (`redo_from`). What
of a run.json is not of the usual form is left out: it can come from anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.shards.run import RUN_NAME, Run

STAGES = {"tag": "tagger", "ground": "detector", "segment": "segmenter"}
"""Stage -> the section of its model in the settings, in the order of the stages."""
_ORDER = (*STAGES, "patchify")
_REFERENCES = {"tagger": "weights", "detector": "model", "segmenter": "weights", "llm": "llm"}
"""Section -> the setting that names the model."""
_DECIDING = (
    "threshold", "thresholds", "box_threshold", "text_threshold", "alternates", "nms_iou", "nms_iou_across_labels",
    "min_size", "unboxable",
)  # fmt: skip
"""The settings that say which of its findings are kept."""


@dataclass(frozen=True)
class Model:
    """One model that a run was made with."""

    section: str
    """`tagger`, `detector`, `segmenter`; `grounder`, which is the first two in one; or `llm`."""
    name: str
    """As the settings have it: path, URL or hub name; or the class, for a model of the user's own."""
    hashes: dict[str, str]
    """sha256 of its weights, under an empty name; of a model of the user's own, what it says that decides its
    results."""
    deciding: dict[str, Any]
    """The settings that say which of its findings are kept; all numbers of a model of the user's own."""


@dataclass(frozen=True)
class Origin:
    """Where the regions of some of a run's images come from."""

    models: dict[str, Model]
    """By stage. What a stage without one finds came from an annotation file."""
    edits: list[dict[str, Any]]
    """What `pad retarget` did to the regions since, in order."""


def origins(run: Run) -> list[Origin]:
    """The origins of a run's regions, each once.

    Raises:
        UserError: they can't be found out.
    """
    try:
        found = _origins(run.settings, run.fingerprints)
    except RecursionError as error:
        rule = "what it was made from is nested too deep"
        raise UserError(RUN_NAME, "settings", rule, "use the run.json that pad wrote") from error
    return [origin for position, origin in enumerate(found) if origin not in found[:position]]


def models(run: Run) -> list[tuple[str, Model]]:
    """Every model with what a reader calls it, each origin's behind its number where there are several."""
    found = origins(run)
    numbers = [f"{number}: " if len(found) > 1 else "" for number in range(1, len(found) + 1)]
    named = [
        (f"{number}{model.section}", model)
        for number, origin in zip(numbers, found, strict=True)
        for stage, model in origin.models.items()
        if not (stage == "ground" and model.section == "grounder" and "tag" in origin.models)  # named at `tag`
    ]
    words = _model("llm", run.settings.get("llm"), {"llm": run.fingerprints.get("llm_embedding")})
    return [*named, ("word embeddings", words)] if words else named


def _origins(settings: dict[str, Any], fingerprints: dict[str, Any]) -> list[Origin]:
    if isinstance(parts := settings.get("merged"), list):
        pairs = [(_object(part).get("settings"), _object(part).get("fingerprints")) for part in parts]
        found = [origin for pair in pairs for origin in _origins(*map(_object, pair))]
    else:
        found = [Origin(_models(settings, fingerprints), [])]
        earlier, redone = _object(settings.get("earlier")), settings.get("redo_from")
        if earlier and redone in _ORDER:
            kept = _ORDER[: _ORDER.index(redone)]
            anew = {stage: model for stage, model in found[0].models.items() if stage not in kept}
            found = [
                Origin(
                    {stage: model for stage, model in origin.models.items() if stage in kept} | anew,
                    origin.edits if "ground" in kept else [],  # they are of regions that are not there any more
                )
                for origin in _origins(_object(earlier.get("settings")), earlier)
            ]
    edits = settings.get("edits")
    own = [_object(edit) for edit in edits] if isinstance(edits, list) else []
    return [replace(origin, edits=[*origin.edits, *own]) for origin in found]


def _models(settings: dict[str, Any], fingerprints: dict[str, Any]) -> dict[str, Model]:
    """The models of a build, by stage; none for an import."""
    tagger = _object(settings.get("tagger"))
    # A grounder's settings stand in both places; those of an own tagger and an own detector always differ.
    fused = "class" in tagger and tagger == settings.get("detector")
    found = {
        stage: _model("grounder" if fused and stage != "segment" else section, settings.get(section), fingerprints)
        for stage, section in STAGES.items()
    }
    return {stage: model for stage, model in found.items() if model}


def _model(section: str, entry: Any, fingerprints: dict[str, Any]) -> Model | None:
    if not isinstance(entry, dict):
        return None
    texts = {name: value for name, value in fingerprints.items() if isinstance(value, str)}
    deciding = {name: entry[name] for name in _DECIDING if entry.get(name) not in (None, "")}
    if "threshold" in deciding:
        deciding.pop("thresholds", None)  # which it stands for
    if "class" in entry:
        own = f"{section}_"
        hashes = {name.removeprefix(own): value for name, value in texts.items() if name.startswith(own)}
        numbers = {n: v for n, v in _object(entry.get("settings")).items() if isinstance(v, int | float)}
        return Model(section, str(entry["class"]), hashes, deciding | numbers)
    hashes = {"": texts[section]} if section in texts else {}
    return Model(section, str(entry.get(_REFERENCES[section], "unknown")), hashes, deciding)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
