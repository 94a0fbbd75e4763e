"""One of the five models, or all in their order, and the manifest when all are there."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from examples.miniature.clip import VIEW as CLIP_VIEW
from examples.miniature.clip import ClipRecipe
from examples.miniature.detector import SETTINGS as DETECTOR
from examples.miniature.detector import DetectorRecipe
from examples.miniature.llm import LlmRecipe
from examples.miniature.recipe import Recipe, fit
from examples.miniature.segmenter import SegmenterRecipe
from examples.miniature.tagger import SHAPE as RAM_SHAPE
from examples.miniature.tagger import TaggerRecipe
from pad_pipeline.console import errors, note, progress
from pad_pipeline.errors import UserError
from pad_pipeline.machine import cores
from pad_pipeline.miniature.shipped import MANIFEST, Manifest
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.weights import file_sha256

ORDER = ("tagger", "detector", "segmenter", "clip", "llm")
"""The detector starts from the tagger's Swin; the others stand alone."""


class Member(BaseModel):
    """The manifest's entry for one of the five models."""

    model_config = ConfigDict(extra="forbid")

    command: str
    """The command that trains the model."""
    steps: int
    parameters: int
    seconds: float
    """The duration of the training on `machine`."""
    machine: str
    metrics: dict[str, float]
    """The metrics on the validation world, whose scenes neither training nor evaluation sees."""


def train_miniature(model: str, out: Path, seed: int = 0, steps: int = 0) -> Path:
    """Train one model, or `all`.

    Args:
        model: one of `ORDER`, or `all`.
        out: folder; `models/` in it is the miniature, `training/` the state that an interrupted call goes on from.
        seed: of weights and scenes.
        steps: instead of each model's own budget; 0 for that.

    Returns:
        The folder of the models, with a manifest where all five are there.

    Raises:
        UserError: the tagger is missing, or the folder holds another training.
    """
    models = out / "models"
    if model in ("all", "detector") and not installed("scipy"):
        raise UserError("model", model, not_installed("scipy"), OPTIONAL["scipy"].install)
    try:
        models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = f"it can't be written ({error.strerror})"
        raise UserError("out", out, rule, "choose another folder") from error
    for member in ORDER if model == "all" else (model,):
        _train_one(member, out, seed, steps)
    members = _members(out)
    if set(members) == set(ORDER):
        (models / "models.toml").write_text(_toml(members["detector"].metrics["box_threshold"]), "utf-8")
        _write_manifest(models, members)
    return models


def _write_manifest(folder: Path, members: dict[str, Member]) -> None:
    """Write the manifest of a folder of models, with the hashes of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    entries = {name: member.model_dump() for name, member in members.items()}
    manifest = Manifest(labels=list(LABELS), members=entries, files=hashes)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1) + "\n", "utf-8")


def _recipe(name: str, out: Path, seed: int, steps: int) -> Recipe:
    more: dict[str, Any] = {"seed": seed} | ({"steps": steps} if steps else {})
    if name == "detector":
        tagger = out / "models/tagger.safetensors"
        if not tagger.is_file():
            remedy = "first run `python -m examples.miniature tagger` with the same `out`"
            raise UserError("detector", tagger, "it starts from the tagger's Swin, which is not there", remedy)
        return DetectorRecipe(tagger, **more)
    kinds: dict[str, Callable[..., Recipe]] = {
        "tagger": TaggerRecipe,
        "segmenter": SegmenterRecipe,
        "clip": ClipRecipe,
        "llm": LlmRecipe,
    }
    return kinds[name](**more)


def _train_one(name: str, out: Path, seed: int, steps: int) -> None:
    folder = out / "training" / name
    recipe = _recipe(name, out, seed, steps)
    if steps:
        recipe.validation = min(recipe.validation, 5 * steps)  # who tries a few steps does not want to wait either
    with progress(f"{name:10}", recipe.budget.steps, "drawing scenes") as update:

        def report(entry: dict[str, Any]) -> None:
            known = {"step", "steps", "rate", "images_per_second"}
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in entry.items() if key not in known)
            line = f"{numbers}  {entry['images_per_second']:.0f} images/s"
            update(completed=entry["step"] + 1, note=line)
            if not errors.is_terminal and entry["step"] % 200 == 0:
                note(f"{name}: step {entry['step']} of {entry['steps']}: {line}")

        seconds = fit(recipe, folder, report)
    try:
        metrics = recipe.export(out / "models")
    except (OSError, SafetensorError) as error:
        raise UserError("out", out, f"it can't be written ({error})", "make room, and run it again") from error
    member = Member(
        command=f"python -m examples.miniature {name} --seed {seed}" + (f" --steps {steps}" if steps else ""),
        steps=recipe.budget.steps,
        parameters=sum(parameter.numel() for parameter in recipe.network.parameters()),
        seconds=round(seconds, 1),
        machine=_machine(),
        metrics={key: round(value, 4) for key, value in metrics.items()},
    )
    (folder / "member.json").write_text(member.model_dump_json(indent=1) + "\n", "utf-8")
    shown = ", ".join(f"{key} {value}" for key, value in member.metrics.items()) or "done"
    note(f"{name}: {member.parameters / 1e6:.2f} M parameters, {seconds:.0f} s; {shown}")


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cores()} cores, {platform.machine()}"


def _members(out: Path) -> dict[str, Member]:
    paths = {name: out / "training" / name / "member.json" for name in ORDER}
    try:
        return {name: Member.model_validate_json(path.read_bytes()) for name, path in paths.items() if path.is_file()}
    except ValidationError as error:
        rule = f"a member.json in it can't be read ({error.title})"
        raise UserError("out", out / "training", rule, "train that model again") from error


def _toml(box_threshold: float) -> str:
    """What names the models of a build; the shapes are the recipes'."""
    tagger = {"weights": "tagger.safetensors", "tag_list": "tags.txt", "thresholds": "thresholds.txt"}
    detector = {"model": "detector", "box_threshold": box_threshold} | DETECTOR
    sections: dict[str, dict[str, Any]] = {
        "tagger": tagger | RAM_SHAPE.model_dump(),
        "detector": detector,
        "segmenter": {"weights": "segmenter.safetensors", "batch_size": 16},
        "llm": {"llm": "llm"},
        "view": {"size": CLIP_VIEW.size, "patch": CLIP_VIEW.patch},
    }
    return f"# The miniature: small models of the drawn world. {MANIFEST} says how they were made.\n" + as_toml(
        sections
    )


def as_toml(sections: dict[str, dict[str, Any]]) -> str:
    """Sections of text, numbers, booleans and lists of them, which TOML writes as JSON does."""
    return "\n".join(
        "".join([f"[{name}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in entries.items())])
        for name, entries in sections.items()
    )
