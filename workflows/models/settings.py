"""Settings of the models of a build: the presets `paper` and `plus`, the miniature, or a TOML file, which may name the
user's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.miniature.shipped import NAME as MINIATURE
from pad_pipeline.miniature.shipped import checked
from pad_pipeline.roles import ORDER, REQUIRED, ROLES, RedoFrom, is_redone, section_of
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.load import SECTIONS, CustomSettings, resolve_settings
from pad_pipeline.stages.custom.stages import CustomDetector, CustomGrounder, CustomSegmenter, CustomTagger
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.workflows.models.catalog import OFFICIAL
from pad_pipeline.workflows.toml import read_toml, settings_error

KINDS: tuple[type[StageSettings], ...] = (
    TaggerSettings, DetectorSettings, SegmenterSettings, CustomTagger, CustomDetector, CustomSegmenter, CustomGrounder,
)  # fmt: skip
"""The settings of all stages with a model. A section of a models file is of pad's kind with the section's name, or of
the custom kind if it names a class."""

Kind = TypeVar("Kind", bound=StageSettings)


class ModelSettings(BaseModel):
    """The models of a build, how they compute, how images are decoded, and what the vision tower sees."""

    model_config = ConfigDict(extra="forbid")

    annotators: tuple[StageSettings, ...]
    """Settings of the stages with a model, in the order in which a shard goes through them."""
    llm: LabelSettings
    compute: ComputeSettings = ComputeSettings()
    decode: DecodeSettings = DecodeSettings()
    view: View = View()
    """The view of the vision tower that belongs to the LLM. Options of the command line override it."""

    @field_validator("annotators")
    @classmethod
    def _each_step_once(cls, annotators: tuple[StageSettings, ...]) -> tuple[StageSettings, ...]:
        annotators = tuple(sorted(annotators, key=lambda one: ORDER.index(cast(RedoFrom, one.steps[0]))))
        by_step: dict[str, str] = {}
        for section, step in ((one.section, step) for one in annotators for step in one.steps):
            if step in by_step:
                raise ValueError(f"{by_step[step]} and {section} both do the step {step}; leave one of them out")
            by_step[step] = section
        if missing := [step for step in REQUIRED if step not in by_step]:
            raise ValueError(f"the section {section_of(missing[0])} is missing")
        return annotators

    def of(self, kind: type[Kind]) -> Kind:
        """Return the settings of one kind, for code that works with no other kind.

        Raises:
            UserError: the models have another kind instead.
        """
        for one in self.annotators:
            if isinstance(one, kind):
                return one
        others = [one for one in self.annotators if {*one.steps} & {*ROLES[kind.section]}]
        value = ", ".join(getattr(one, "class_", one.section) for one in others) or "none"
        raise UserError("models", value, f"this wants a {kind.section} of pad's", "name other models")

    @property
    def with_files(self) -> list[StageSettings | LabelSettings]:
        """The settings that name model files: those of the stages with a model, and of the LLM."""
        return [*self.annotators, self.llm]

    def since(self, redo_from: RedoFrom = "tag") -> list[StageSettings]:
        """Return the settings of the stages that do `redo_from` or a later step."""
        return [one for one in self.annotators if is_redone(one.steps, redo_from)]

    def fingerprints(self, redo_from: RedoFrom = "tag") -> dict[str, str]:
        """Return the sha256 of the files of all stages from `redo_from` on. Missing files are fetched.

        Raises:
            UserError: a model is not there, can't be reached, or does not have the pinned sha256.
        """
        return {name: value for one in self.since(redo_from) for name, value in one.fingerprints().items()}

    def as_sections(self) -> dict[str, Any]:
        """Return the settings for run.json. Each step has its own section there, and a model that does two steps is in
        both. The view is left out, because run.json has its own entry for it."""
        sections: dict[str, Any] = {}
        for one in self.annotators:
            sections |= dict.fromkeys(map(section_of, one.steps), one.model_dump(mode="json"))
        return sections | self.model_dump(mode="json", include={"llm", "compute", "decode"})


_REST = {
    "detector": {"model": "IDEA-Research/grounding-dino-base"},
    "segmenter": {"weights": "sam_vit_h"},
    "llm": {"llm": "lmsys/vicuna-7b-v1.5"},
}
_OFFICIAL_TAGS = {"tag_list": "ram_tag_list", "thresholds": "ram_tag_list_threshold"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"tagger": {"family": "ram", "weights": "ram_swin_large_14m", **_OFFICIAL_TAGS}, **_REST},
    "plus": {"tagger": {"family": "ram_plus", "weights": "ram_plus_swin_large_14m", **_OFFICIAL_TAGS}, **_REST},
}
"""`paper`: RAM Swin-L, Grounding DINO base, SAM ViT-H, the embedding of Vicuna-1.5-7B. `plus`: the same with RAM++.

Hashes are pinned if two independent public sources agree on them. For the others (RAM's file, Grounding DINO base,
Vicuna), the hash of the fetched file is written to run.json, and a resumed run refuses another."""


def load_models(models: str) -> ModelSettings:
    """Load the settings of a preset, of `miniature`, or of a TOML file.

    In a file, `preset = "paper"` takes over the settings of that preset, and the file's sections override them. Paths
    are relative to the file.

    Raises:
        UserError: there is no such preset or file, or a setting is wrong.
    """
    if models in PRESETS:
        return _settings(PRESETS[models], models, Path.cwd())
    path = checked() / "models.toml" if models == MINIATURE else Path(models).expanduser()
    if not path.is_file():
        rule = f"it is neither a preset ({', '.join([*PRESETS, MINIATURE])}) nor a file"
        raise UserError("models", models, rule, "name one of these, or a TOML file")
    data = read_toml("models", path)
    preset = data.pop("preset", None)
    if preset is not None and preset not in list(PRESETS):
        raise UserError(f"{models}: preset", preset, f"it should be one of {', '.join(PRESETS)}", "correct it")
    # A model in the file replaces each model of the preset that does one of its steps.
    steps = {step for section in data for step in ROLES.get(section, ())}
    sections: dict[str, Any] = {
        section: entries
        for section, entries in (PRESETS[preset] if preset else {}).items()
        if section in data or steps.isdisjoint(ROLES.get(section, ()))
    }
    for section, entries in data.items():
        kind = _kind(section, entries)
        if kind is None or not isinstance(entries, dict):
            sections[section] = entries
            continue
        entries = _resolved(entries, kind.paths, path.parent, models == MINIATURE)
        unpinned = {kind.pins.get(setting) for setting in entries}  # with another file, the preset's hash is wrong
        kept = {} if issubclass(kind, CustomSettings) else sections.get(section, {})
        sections[section] = {setting: value for setting, value in kept.items() if setting not in unpinned} | entries
    return _settings(sections, str(path), path.parent)


def _kind(section: str, entries: object) -> type[StageSettings | LabelSettings] | None:
    """Return the settings class of a section; None for a section without a model."""
    custom = isinstance(entries, dict) and bool(entries.keys() & SECTIONS)
    every: list[type[StageSettings | LabelSettings]] = [*KINDS, LabelSettings]
    kinds = [kind for kind in every if kind.section == section]
    return next((kind for kind in kinds if issubclass(kind, CustomSettings) is custom), kinds[-1] if kinds else None)


def _settings(sections: dict[str, Any], where: str, folder: Path) -> ModelSettings:
    """Return the settings of all sections of the file or preset `where`. The user's own classes are imported here;
    paths in their settings are relative to `folder`."""
    annotators: list[StageSettings] = []
    others: dict[str, Any] = {}
    for section, entries in sections.items():
        kind = _kind(section, entries)
        entries = _with_official(entries, kind.pins) if kind and isinstance(entries, dict) else entries
        if kind is None or not issubclass(kind, StageSettings):
            others[section] = entries
            continue
        try:
            stage = kind.model_validate(entries)
        except ValidationError as error:
            raise settings_error(error, where, section) from error
        annotators.append(resolve_settings(stage, folder, where) if isinstance(stage, CustomSettings) else stage)
    try:
        return ModelSettings.model_validate({**others, "annotators": annotators})
    except ValidationError as error:
        found = settings_error(error, where)
        if not found.field.endswith(": annotators"):
            raise found from error
        sections_there = ", ".join(one.section for one in annotators)
        raise UserError(f"{where}: sections", sections_there, found.rule, "correct the sections") from error


def _with_official(entries: dict[str, Any], pins: dict[str, str]) -> dict[str, Any]:
    """Return a section in which each short name of an official file is replaced by the file's address and hash."""
    replaced = dict(entries)
    for setting, pin in pins.items():
        value = entries.get(setting)
        if isinstance(value, str) and value in OFFICIAL:
            replaced = {pin: OFFICIAL[value].sha256} | replaced | {setting: OFFICIAL[value].reference}
    return replaced


def _resolved(entries: dict[str, Any], paths: tuple[str, ...], folder: Path, packaged: bool) -> dict[str, Any]:
    """Return a section in which each path that exists in `folder` is absolute. A path of the miniature becomes
    `miniature:PATH`, so that it does not depend on where the package is installed."""
    texts = {setting: value for setting in paths if isinstance(value := entries.get(setting), str)}
    return entries | {
        setting: f"{MINIATURE}:{path}" if packaged else str((folder / path).resolve())
        for setting, path in texts.items()
        if path and (folder / path).exists()
    }


def with_tags(models: ModelSettings, tag_list: str, tag_thresholds: str) -> ModelSettings:
    """Return `models` with the user's tag list and thresholds; an empty text keeps that of the models.

    Raises:
        UserError: the tagger is a user's own class.
    """
    given = {"tag_list": tag_list, "thresholds": tag_thresholds}
    changes: dict[str, Any] = {setting: value for setting, value in given.items() if value}
    if not changes:
        return models
    try:
        tagger = models.of(TaggerSettings)
    except UserError as error:
        field = "tag_list" if tag_list else "tag_thresholds"
        rule = f"the tagger is a class of your own ({error.value})"
        raise UserError(field, tag_list or tag_thresholds, rule, "put its tags into its settings") from error
    changes |= {TaggerSettings.pins[setting]: "" for setting in changes}
    if tag_thresholds:
        changes["threshold"] = None
    changed = tagger.model_copy(update=changes)
    annotators = tuple(changed if one is tagger else one for one in models.annotators)
    return models.model_copy(update={"annotators": annotators})
