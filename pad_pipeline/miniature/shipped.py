"""The trained miniature in the package: five small models, and a manifest with their labels and hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.weights import file_sha256

NAME = "miniature"
"""The name of the shipped models in settings and on the command line."""
FOLDER = Path(__file__).parent / "models"
MANIFEST = "manifest.json"
REMEDY = "install the package again, or train the miniature again (examples/miniature)"


class Manifest(BaseModel):
    """The manifest of a folder of models."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str]
    """The labels of the drawn scenes that the models were trained on."""
    members: dict[str, dict[str, Any]]
    """The training and the metrics of each model, from `examples/miniature/members.py`."""
    files: dict[str, str]
    """The sha256 of each file, by its path relative to the folder."""


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of models; raise `UserError` if it is missing or damaged."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(NAME, path, "its manifest is missing", REMEDY) from error
    except (OSError, ValidationError) as error:
        raise UserError(NAME, path, f"its manifest can't be read ({type(error).__name__})", REMEDY) from error


def checked_folder(folder: Path | None = None) -> Path:
    """Check a folder of models (by default the shipped one) against its manifest, and return the folder.

    Raise `UserError` if a file is missing or changed, or the models have other labels than drawn scenes.
    """
    folder = folder or FOLDER
    manifest = read_manifest(folder)
    for name, wanted in manifest.files.items():
        path = folder / Path(name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(NAME, name, "its manifest names a file outside its folder", REMEDY)
        if not path.is_file():
            raise UserError(NAME, path, "the file is missing", REMEDY)
        if (found := file_sha256(path)) != wanted:
            raise UserError(NAME, path, f"its sha256 is {found}, and its manifest says {wanted}", REMEDY)
    check_labels(NAME, folder / MANIFEST, manifest.labels)
    if tuple(manifest.labels) != LABELS:
        count = len(manifest.labels)
        rule = f"it is made for {count} labels, and the drawn world has {len(LABELS)} or another order of them"
        raise UserError(NAME, folder / MANIFEST, rule, REMEDY)
    return folder


def check_labels(field: str, value: Any, labels: list[str]) -> None:
    """Raise `UserError` for the setting `field` if drawn scenes can't have one of its `labels`."""
    if unknown := [label for label in labels if label not in LABELS]:
        rule = f"it has labels that the drawn world does not know ({', '.join(map(repr, unknown[:3]))})"
        raise UserError(field, value, rule, "use models for the world's labels, such as the miniature")


def member_reference(name: str, member: str) -> str:
    """Return the reference of a shipped model (`clip` or `llm`) if `name` is `miniature`, or else `name`.

    Raise `UserError` if the shipped models are damaged, see `checked_folder`.
    """
    if name != NAME:
        return name
    checked_folder()
    return f"{NAME}:{member}"
