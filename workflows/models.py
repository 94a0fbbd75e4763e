"""Which models a build uses: the presets `paper` and `plus`, the miniature, or a TOML file for anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelSettings
from pad_pipeline.miniature.shipped import NAME as MINIATURE
from pad_pipeline.miniature.shipped import checked
from pad_pipeline.pictures import DecodeSettings
from stages.compute import ComputeSettings
from stages.ground import DetectorSettings
from stages.segment import SegmenterSettings
from stages.tag import TaggerSettings
from workflows.settings import read_toml, settings_error

RAM_REPOSITORY = (
    "https://raw.githubusercontent.com/xinyu1205/recognize-anything/7cb804a8609e9f4b1a50b7f31436d2df40bb9481"
)
SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"


class ModelSettings(BaseModel):
    """The four models of a build, one TOML section each; how the first three compute, how pictures are decoded, and
    what the vision tower sees."""

    model_config = ConfigDict(extra="forbid")

    tagger: TaggerSettings
    detector: DetectorSettings
    segmenter: SegmenterSettings
    llm: LabelSettings
    compute: ComputeSettings = ComputeSettings()
    decode: DecodeSettings = DecodeSettings()
    view: View = View()
    """Of the vision tower that goes with the LLM; the command line's options win over it."""


_OFFICIAL_TAGS = {
    "tag_list": f"{RAM_REPOSITORY}/ram/data/ram_tag_list.txt",
    "tag_list_sha256": "5d96d2f7225527480ad773aaac76b6e5c08a18adf6eae9ca7d2ab923d5e7bd8b",
    "thresholds": f"{RAM_REPOSITORY}/ram/data/ram_tag_list_threshold.txt",
    "thresholds_sha256": "b6f81d0de1bc7f9c251af512c413eae976c77dbfbadf700d4e3d90510f4c6447",
}
_REST = {
    "detector": {"model": "IDEA-Research/grounding-dino-base"},
    "segmenter": {
        "weights": f"{SAM_FILES}/sam_vit_h_4b8939.pth",
        "sha256": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    },
    "llm": {"llm": "lmsys/vicuna-7b-v1.5"},
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tagger": {
            "family": "ram",
            "weights": "hf://spaces/xinyu1205/Recognize_Anything-Tag2Text/ram_swin_large_14m.pth",
            **_OFFICIAL_TAGS,
        },
        **_REST,
    },
    "plus": {
        "tagger": {
            "family": "ram_plus",
            "weights": "hf://xinyu1205/recognize-anything-plus-model@6afd703f04b23e1c18d4c7d9882c4f5f954848f8"
            "/ram_plus_swin_large_14m.pth",
            "sha256": "497c178836ba66698ca226c7895317e6e800034be986452dbd2593298d50e87d",
            **_OFFICIAL_TAGS,
        },
        **_REST,
    },
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


def load_models(name: str) -> ModelSettings:
    """The settings that `--models` names: a preset, `miniature`, or a TOML file.

    In a file, `preset = "paper"` starts from that preset and each section changes some of it; paths are relative to
    the file.

    Raises:
        UserError: there is no such preset or file, or a setting is wrong.
    """
    field = "--models"
    if name in PRESETS:
        return ModelSettings.model_validate(PRESETS[name])
    path = checked() / "models.toml" if name == MINIATURE else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join([*PRESETS, MINIATURE])
        raise UserError(
            field, name, f"it is neither a preset ({known}) nor a file", "name one of these, or a TOML file"
        )
    data = read_toml(field, path)
    preset = data.pop("preset", None)
    if preset is not None and preset not in list(PRESETS):
        raise UserError(f"{name}: preset", preset, f"it should be one of {', '.join(PRESETS)}", "correct it")
    merged = dict(PRESETS[preset]) if preset else {}
    for section, entries in data.items():
        if isinstance(entries, dict):
            merged[section] = _over(merged.get(section, {}), _resolved(section, entries, path.parent, name))
        else:
            merged[section] = entries
    try:
        return ModelSettings.model_validate(merged)
    except ValidationError as error:
        raise settings_error(error, str(path)) from error


def _over(usual: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """A preset's section with some entries changed. The hash that is pinned for a file goes with the file."""
    pinned = {"weights": "sha256", "model": "sha256", "tag_list": "tag_list_sha256", "thresholds": "thresholds_sha256"}
    gone = {pin for name, pin in pinned.items() if name in entries}
    return {name: value for name, value in usual.items() if name not in gone} | entries


def _resolved(section: str, entries: dict[str, Any], folder: Path, models: str) -> dict[str, Any]:
    """A section with its paths made absolute where they name something beside the file. Those of the miniature stay
    relative to the package, wherever that is installed."""
    entries = dict(entries)
    for name in _PATHS.get(section, ()):
        value = entries.get(name)
        if value and isinstance(value, str) and (folder / value).exists():
            own = models == MINIATURE
            entries[name] = f"{MINIATURE}:{value}" if own else str((folder / value).resolve())
    return entries
