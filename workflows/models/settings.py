"""Which models a build uses: the presets `paper` and `plus`, the miniature, or a TOML file for anything else, the
user's own classes among it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.miniature.shipped import NAME as MINIATURE
from pad_pipeline.miniature.shipped import checked
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.load import pinned
from pad_pipeline.stages.custom.settings import (
    CustomDetector,
    CustomGrounder,
    CustomSegmenter,
    CustomSettings,
    CustomTagger,
)
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.workflows.models.catalog import OFFICIAL
from pad_pipeline.workflows.toml import BUILT_IN, read_toml, settings_error


def _whose(value: Any) -> str:
    return type(value).__name__ if isinstance(value, CustomSettings) else BUILT_IN


Whose = Discriminator(_whose)


class BuiltIn(NamedTuple):
    """pad's own kinds of models."""

    tagger: TaggerSettings
    detector: DetectorSettings
    segmenter: SegmenterSettings


class ModelSettings(BaseModel):
    """The four models of a build, one TOML section each; how the first three compute, how images are decoded, and
    what the vision tower sees. The section `[grounder]` stands for `tagger` and `detector` both."""

    model_config = ConfigDict(extra="forbid")

    tagger: Annotated[
        Annotated[TaggerSettings, Tag(BUILT_IN)]
        | Annotated[CustomTagger, Tag("CustomTagger")]
        | Annotated[CustomGrounder, Tag("CustomGrounder")],
        Whose,
    ]
    detector: Annotated[
        Annotated[DetectorSettings, Tag(BUILT_IN)]
        | Annotated[CustomDetector, Tag("CustomDetector")]
        | Annotated[CustomGrounder, Tag("CustomGrounder")],
        Whose,
    ]
    segmenter: Annotated[
        Annotated[SegmenterSettings, Tag(BUILT_IN)] | Annotated[CustomSegmenter, Tag("CustomSegmenter")], Whose
    ]
    llm: LabelSettings
    compute: ComputeSettings = ComputeSettings()
    decode: DecodeSettings = DecodeSettings()
    view: View = View()
    """Of the vision tower that goes with the LLM; the command line's options win over it."""

    @property
    def built_in(self) -> BuiltIn:
        """The annotation models, for what can't work with others.

        Raises:
            UserError: a class of the user's is among them.
        """
        for custom in (self.tagger, self.detector, self.segmenter):
            if isinstance(custom, CustomSettings):
                raise UserError("models", custom.class_, f"this wants a {custom.section} of pad's", "name other models")
        return BuiltIn(self.tagger, self.detector, self.segmenter)  # type: ignore[arg-type]  # the loop saw to it


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

Hashes are pinned where two independent public sources agree on them; where none is known (RAM's file, Grounding DINO
base, Vicuna) the hash found is recorded in run.json, and a resumed run refuses another."""

_PATHS = {
    "tagger": ("weights", "tag_list", "thresholds"),
    "detector": ("model", "tokenizer", "unboxable"),
    "segmenter": ("weights",),
    "llm": ("llm",),
}


def load_models(models: str) -> ModelSettings:
    """Return the settings that `models` names: a preset, `miniature`, or a TOML file.

    In a file, `preset = "paper"` starts from that preset and each section changes some of it; paths are relative to
    the file.

    Raises:
        UserError: there is no such preset or file, or a setting is wrong.
    """
    if models in PRESETS:
        return ModelSettings.model_validate(_named(PRESETS[models]))
    path = checked() / "models.toml" if models == MINIATURE else Path(models).expanduser()
    if not path.is_file():
        known = ", ".join([*PRESETS, MINIATURE])
        rule = f"it is neither a preset ({known}) nor a file"
        raise UserError("models", models, rule, "name one of these, or a TOML file")
    data = read_toml("models", path)
    preset = data.pop("preset", None)
    if preset is not None and preset not in list(PRESETS):
        raise UserError(f"{models}: preset", preset, f"it should be one of {', '.join(PRESETS)}", "correct it")
    merged = dict(PRESETS[preset]) if preset else {}
    for section, entries in data.items():
        if (
            section in _CUSTOM
            and isinstance(entries, dict)
            and (section == "grounder" or entries.keys() & {"class", "entry_point"})
        ):
            merged[section] = _custom(section, entries, path)
        elif isinstance(entries, dict):
            merged[section] = _over(merged.get(section, {}), _resolved(section, entries, path.parent, models))
        else:
            merged[section] = entries
    if "grounder" in merged:
        if both := sorted(data.keys() & {"tagger", "detector"}):
            rule = "a grounder is tagger and detector in one"
            raise UserError(f"{path}: {both[0]}", "{...}", rule, "leave out one of the sections")
        if isinstance(merged["grounder"], CustomGrounder):
            merged["tagger"] = merged["detector"] = merged.pop("grounder")
    try:
        return ModelSettings.model_validate(_named(merged))
    except ValidationError as error:
        raise settings_error(error, str(path)) from error


_CUSTOM: dict[str, type[CustomSettings]] = {
    kind.section: kind for kind in (CustomTagger, CustomDetector, CustomSegmenter, CustomGrounder)
}
"""What each section with a class of the user's is."""


def _custom(section: str, entries: dict[str, Any], path: Path) -> CustomSettings:
    """A section that names a class of the user's, which is imported here: he said so in this file."""
    try:
        return pinned(
            _CUSTOM[section].model_validate(_resolved(section, entries, path.parent, "")), path.parent, str(path)
        )
    except ValidationError as error:
        raise settings_error(error, str(path), section) from error


_PINS = {"weights": "sha256", "model": "sha256", "tag_list": "tag_list_sha256", "thresholds": "thresholds_sha256"}
"""The setting that pins the hash of the file that another names."""


def _over(default: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """A preset's section with some entries changed. A hash goes with the file that it is pinned for."""
    gone = {_PINS.get(name) for name in entries}
    return {name: value for name, value in default.items() if name not in gone} | entries


def _named(sections: dict[str, Any]) -> dict[str, Any]:
    """Sections in which the short names of official files are replaced by where they are and what they hash to."""
    result = dict(sections)
    for section, entries in sections.items():
        if isinstance(entries, dict):
            result[section] = dict(entries)
            for name, pin in _PINS.items():
                value = entries.get(name)
                if isinstance(value, str) and value in OFFICIAL:
                    result[section] |= {name: OFFICIAL[value].reference}
                    result[section].setdefault(pin, OFFICIAL[value].sha256)
    return result


def with_tags(models: ModelSettings, tag_list: str, tag_thresholds: str) -> ModelSettings:
    """`models` with the user's own tag list and thresholds; what is empty stays as it is."""
    custom = {"tag_list": tag_list, "thresholds": tag_thresholds}
    changes: dict[str, Any] = {}
    if isinstance(models.tagger, CustomSettings):
        if given := tag_list or tag_thresholds:
            rule = f"the tagger is a class of your own ({models.tagger.class_})"
            raise UserError("tag_list" if tag_list else "tag_thresholds", given, rule, "put its tags into its settings")
        return models
    for name, value in custom.items():
        if value:
            changes |= {name: value, _PINS[name]: ""}
    if tag_thresholds:
        changes["threshold"] = None
    return models.model_copy(update={"tagger": models.tagger.model_copy(update=changes)})


def _resolved(section: str, entries: dict[str, Any], folder: Path, models: str) -> dict[str, Any]:
    """A section with its paths made absolute where they name something beside the file. Those of the miniature stay
    relative to the package, wherever that is installed."""
    entries = dict(entries)
    for name in _PATHS.get(section, ()):
        value = entries.get(name)
        if value and isinstance(value, str) and (folder / value).exists():
            custom = models == MINIATURE
            entries[name] = f"{MINIATURE}:{value}" if custom else str((folder / value).resolve())
    return entries
