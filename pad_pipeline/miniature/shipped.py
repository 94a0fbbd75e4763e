"""The trained miniature that comes with the package: five small models, and a manifest that describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.weights import file_sha256

NAME = "miniature"
"""The name of the shipped models, wherever models are named."""
FOLDER = Path(__file__).parent / "models"
MANIFEST = "manifest.json"
REMEDY = "install the package again, or train the miniature anew (examples/miniature)"


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


class Manifest(BaseModel):
    """The content of a folder of models."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str]
    """The labels of the world that the models were trained on."""
    members: dict[str, Member]
    files: dict[str, str]
    """The sha256 of each file, by its path relative to the folder."""


def write_manifest(folder: Path, members: dict[str, Member]) -> None:
    """Write the manifest of a folder of models, with the hashes of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    manifest = Manifest(labels=list(LABELS), members=members, files=hashes)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1) + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of models.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(NAME, path, "its manifest is missing", REMEDY) from error
    except (OSError, ValidationError) as error:
        raise UserError(NAME, path, f"its manifest can't be read ({type(error).__name__})", REMEDY) from error


def checked(folder: Path | None = None) -> Path:
    """Check every file of a folder of models (by default the shipped one) against its manifest, and return the folder.

    Raises:
        UserError: a file is missing or has changed, or the models were trained for other labels than the world's.
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
    check_labels(NAME, folder / MANIFEST, manifest.labels, whole=True)
    return folder


def check_labels(field: str, value: Any, labels: list[str], whole: bool = False) -> None:
    """Check that the world has these labels.

    Args:
        field: the setting that the labels come from, for errors.
        value: the value of the setting.
        labels: the labels to check.
        whole: whether they must be all labels of the world, in its order.

    Raises:
        UserError: the world does not have a label, or, with `whole`, they are not all of its labels.
    """
    if unknown := [label for label in labels if label not in LABELS]:
        rule = f"it has labels that the drawn world does not know ({', '.join(map(repr, unknown[:3]))})"
        raise UserError(field, value, rule, "use models for the world's labels, such as the miniature")
    if whole and tuple(labels) != LABELS:
        rule = f"it is made for {len(labels)} labels, and the drawn world has {len(LABELS)} or another order of them"
        raise UserError(field, value, rule, REMEDY)


def resolve(name: str, member: str) -> str:
    """Return a reference to a member of the miniature if `name` is `miniature`; return any other name unchanged.

    Args:
        name: the name of a model.
        member: `clip` or `llm`.

    Raises:
        UserError: the files of the miniature are damaged, see `checked`.
    """
    if name != NAME:
        return name
    checked()
    return f"{NAME}:{member}"
