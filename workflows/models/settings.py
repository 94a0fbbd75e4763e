"""Load the settings of the models of a build: from a preset, the miniature, or a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.miniature.shipped import NAME as MINIATURE
from pad_pipeline.miniature.shipped import checked_folder
from pad_pipeline.roles import REQUIRED, ROLES, STEPS, RedoFrom, is_redone, section_of
from pad_pipeline.stages.captions import CaptionsSettings
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.concept import ConceptSettings
from pad_pipeline.stages.custom.load import SECTIONS, CustomSettings, resolve_settings
from pad_pipeline.stages.custom.stages import CustomDetector, CustomGrounder, CustomSegmenter, CustomTagger
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.workflows.models.catalog import OFFICIAL
from pad_pipeline.workflows.toml import read_toml, settings_error

KINDS: tuple[type[StageSettings], ...] = (
    TaggerSettings, CaptionsSettings, DetectorSettings, SegmenterSettings, ConceptSettings,
    CustomTagger, CustomDetector, CustomSegmenter, CustomGrounder,
)  # fmt: skip
"""The settings classes of all stages with a model. A section of a models file that names a user's own class is read as
the `Custom...` class, any other section as pad's class with the same `section`."""

Kind = TypeVar("Kind", bound=StageSettings)


class ModelSettings(BaseModel):
    """The settings of a build's models, of computing and decoding, and the view."""

    model_config = ConfigDict(extra="forbid")

    annotators: tuple[StageSettings, ...]
    """Settings of the stages with a model, in the order in which a shard goes through them."""
    llm: LabelSettings
    compute: ComputeSettings = ComputeSettings()
    decode: DecodeSettings = DecodeSettings()
    view: View = View()
    """The view that the vision tower of the LLM takes in. Options of the command line override it."""

    @field_validator("annotators")
    @classmethod
    def _each_step_once(cls, annotators: tuple[StageSettings, ...]) -> tuple[StageSettings, ...]:
        annotators = tuple(sorted(annotators, key=lambda one: STEPS.index(cast(RedoFrom, one.steps[0]))))
        by_step: dict[str, str] = {}
        for section, step in ((one.section, step) for one in annotators for step in one.steps):
            if step in by_step:
                raise ValueError(f"{by_step[step]} and {section} both do the step {step}; leave one of them out")
            by_step[step] = section
        if missing := [steps for steps in REQUIRED if by_step.keys().isdisjoint(steps)]:
            raise ValueError(f"the section {' or '.join(map(section_of, missing[0]))} is missing")
        return annotators

    def annotator(self, kind: type[Kind]) -> Kind:
        """Return the settings in `annotators` that are of the class `kind`.

        Raises:
            UserError: there are none of this class.
        """
        for one in self.annotators:
            if isinstance(one, kind):
                return one
        others = [one for one in self.annotators if {*one.steps} & {*ROLES[kind.section]}]
        value = ", ".join(getattr(one, "class_", one.section) for one in others) or "none"
        raise UserError("models", value, f"this wants a {kind.section} of pad's", "name other models")

    def annotators_from(self, redo_from: RedoFrom) -> list[StageSettings]:
        """Return the settings of the stages that do the step `redo_from` or a later step."""
        return [one for one in self.annotators if is_redone(one.steps, redo_from)]

    def fingerprints(self, redo_from: RedoFrom = "tag") -> dict[str, str]:
        """Return the sha256 of each model file of the stages from `redo_from` on. Missing files are fetched.

        Raises:
            UserError: a file is missing and can't be fetched, or does not have the pinned sha256.
        """
        return {name: value for one in self.annotators_from(redo_from) for name, value in one.fingerprints().items()}

    def as_sections(self) -> dict[str, Any]:
        """Return the settings as run.json holds them: one section for each step, so a model that does two steps is in
        two sections. The view is left out, because run.json has its own entry for it."""
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
    "best": {
        "tagger": {"family": "ram_plus", "weights": "ram_plus_swin_large_14m", **_OFFICIAL_TAGS},
        "detector": {"model": "iSEE-Laboratory/llmdet_large"},
        "segmenter": {"weights": "facebook/sam2.1-hiera-large"},
        "llm": _REST["llm"],
    },
}
"""`paper`: RAM Swin-L, Grounding DINO base, SAM ViT-H, the embedding of Vicuna-1.5-7B. `plus`: the same with RAM++.
`best`: RAM++, LLMDet large and SAM 2.1 large, by published numbers (docs/howto/models.md).

Every file but LLMDet's is pinned by a hash or by a revision (`pad_pipeline/pins.py`). run.json gets the hash of each,
of an LLM that of its embedding, and a resumed run refuses another one."""


def load_models(models: str) -> ModelSettings:
    """Load the settings of a preset, of `miniature`, or of a TOML file.

    A file with `preset = "paper"` (or `plus`, `best` or `miniature`) starts from the settings of that preset, and its
    sections override them. `tagger = false` leaves the preset's tagger out. Paths are relative to the file.

    Raises:
        UserError: there is no such preset or file, or a setting is wrong.
    """
    if models in PRESETS:
        return _settings(PRESETS[models], models, Path.cwd())
    path = checked_folder() / "models.toml" if models == MINIATURE else Path(models).expanduser()
    if not path.is_file():
        rule = f"it is neither a preset ({', '.join([*PRESETS, MINIATURE])}) nor a file"
        raise UserError("models", models, rule, "name one of these, or a TOML file")
    data = read_toml("models", path)
    preset, given = data.pop("preset", None), PRESETS
    if preset == MINIATURE and models != MINIATURE:
        home = checked_folder()
        given = {MINIATURE: _with_paths(read_toml("models", home / "models.toml"), home, packaged=True)}
    if preset is not None and preset not in [*given]:  # a list, because TOML may give something unhashable
        raise UserError(
            f"{models}: preset", preset, f"it should be one of {', '.join([*PRESETS, MINIATURE])}", "correct it"
        )
    if without := [section for section in ROLES if data.get(section) is False]:
        data = {section: entries for section, entries in data.items() if section not in without}
    # A model in the file replaces each model of the preset that does one of its steps.
    steps = {step for section in data for step in ROLES.get(section, ())}
    sections: dict[str, Any] = {
        section: entries
        for section, entries in (given[preset] if preset else {}).items()
        if section not in without and (section in data or steps.isdisjoint(ROLES.get(section, ())))
    }
    for section, entries in _with_paths(data, path.parent, packaged=models == MINIATURE).items():
        kind = _kind(section, entries)
        kept = {} if kind and issubclass(kind, CustomSettings) else sections.get(section, {})
        sections[section] = kept | entries if isinstance(entries, dict) else entries
    return _settings(sections, str(path), path.parent)


def _with_paths(data: dict[str, Any], folder: Path, packaged: bool) -> dict[str, Any]:
    """Return the sections of a file in `folder`, with the paths of models as `_resolved` gives them."""
    kinds = {section: _kind(section, entries) for section, entries in data.items()}
    return {
        section: _resolved(entries, kind.paths, folder, packaged)
        if (kind := kinds[section]) and isinstance(entries, dict)
        else entries
        for section, entries in data.items()
    }


def _kind(section: str, entries: object) -> type[StageSettings | LabelSettings] | None:
    """Return the settings class of a section with a model; None for another section."""
    custom = isinstance(entries, dict) and bool(entries.keys() & SECTIONS)
    every: list[type[StageSettings | LabelSettings]] = [*KINDS, LabelSettings]
    kinds = [kind for kind in every if kind.section == section]
    return next((kind for kind in kinds if issubclass(kind, CustomSettings) is custom), kinds[-1] if kinds else None)


def _settings(sections: dict[str, Any], where: str, folder: Path) -> ModelSettings:
    """Validate all sections of the file or preset `where`. The user's own classes are imported here; paths in their
    settings are relative to `folder`."""
    annotators: list[StageSettings] = []
    others: dict[str, Any] = {}
    for setting in ("threads", "images"):
        if isinstance(compute := sections.get("compute"), dict) and setting in compute:
            rule = "a run sets it, and no models file does"
            raise UserError(f"{where}: compute.{setting}", compute[setting], rule, "leave it out")
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
    """Return a section with the address and the hash of each official file in place of its short name."""
    replaced = dict(entries)
    for setting, pin in pins.items():
        value = entries.get(setting)
        if isinstance(value, str) and value in OFFICIAL:
            replaced = {pin: OFFICIAL[value].sha256} | replaced | {setting: OFFICIAL[value].reference}
    return replaced


def _resolved(entries: dict[str, Any], paths: tuple[str, ...], folder: Path, packaged: bool) -> dict[str, Any]:
    """Return a section with an absolute path in place of each path that exists in `folder`. A path of the miniature
    becomes `miniature:PATH` instead (`packaged`), so that it does not depend on where pad is installed."""
    resolved = dict(entries)
    for setting in paths:
        path = entries.get(setting)
        if isinstance(path, str) and path and (folder / path).exists():
            resolved[setting] = f"{MINIATURE}:{path}" if packaged else str((folder / path).resolve())
    return resolved


def with_tags(models: ModelSettings, tag_list: str, tag_thresholds: str) -> ModelSettings:
    """Return `models` with the user's files of tags and thresholds. An empty text keeps the file that `models` has.

    Raises:
        UserError: the tagger is a user's own class.
    """
    files = {"tag_list": tag_list, "thresholds": tag_thresholds}
    changes: dict[str, Any] = {setting: file for setting, file in files.items() if file}
    if not changes:
        return models
    try:
        tagger = models.annotator(TaggerSettings)
    except UserError as error:
        field = "tag_list" if tag_list else "tag_thresholds"
        rule, remedy = f"the tagger is a class of your own ({error.value})", "put its tags into its settings"
        if error.value == "none":
            rule, remedy = "the models have no tagger", "leave it out, or name models with a tagger"
        raise UserError(field, tag_list or tag_thresholds, rule, remedy) from error
    changes |= {TaggerSettings.pins[setting]: "" for setting in changes}
    if tag_thresholds:
        changes["threshold"] = None
    changed = tagger.model_copy(update=changes)
    annotators = tuple(changed if one is tagger else one for one in models.annotators)
    return models.model_copy(update={"annotators": annotators})
