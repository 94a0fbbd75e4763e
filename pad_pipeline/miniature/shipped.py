"""The trained miniature that comes with the package: five small models, and a manifest that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.weights import file_sha256

NAME = "miniature"
"""What it is called as `models`, `vision` or `llm`."""
FOLDER = Path(__file__).parent / "models"
MANIFEST = "manifest.json"
REMEDY = "install the package again, or train the miniature anew with `pad miniature train all`"


class Member(BaseModel):
    """One of the five."""

    model_config = ConfigDict(extra="forbid")

    command: str
    """That trains it."""
    steps: int
    parameters: int
    seconds: float
    """That the training took, on `machine`."""
    machine: str
    metrics: dict[str, float]
    """On the validation world, whose scenes neither training nor evaluation sees."""


class Manifest(BaseModel):
    """What is in the folder."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str]
    """The labels of the world that the models were trained on."""
    members: dict[str, Member]
    files: dict[str, str]
    """Path relative to the folder -> sha256."""


def write_manifest(folder: Path, members: dict[str, Member]) -> None:
    """Hash every file of a folder of models, and write its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        path.chmod(0o644)  # safetensors lets nobody else read what it writes
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    manifest = Manifest(labels=list(LABELS), members=members, files=hashes)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1) + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of models.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(NAME, path, "its manifest is missing", REMEDY) from error
    except (OSError, ValidationError) as error:
        raise UserError(NAME, path, f"its manifest can't be read ({type(error).__name__})", REMEDY) from error


def checked(folder: Path | None = None) -> Path:
    """The folder of the miniature (the shipped one by default), after a look at every file of it.

    Raises:
        UserError: a file is missing or was changed, or the models were trained for other labels than the world has.
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
    """Refuse labels that the world does not know.

    Args:
        field: the setting that brought them.
        value: what it was set to.
        labels: the labels.
        whole: they must be all of the world's, in its order.

    Raises:
        UserError: a label is unknown, or they are not all.
    """
    if unknown := [label for label in labels if label not in LABELS]:
        rule = f"it has labels that the drawn world does not know ({', '.join(map(repr, unknown[:3]))})"
        raise UserError(field, value, rule, "use models for the world's labels, such as the miniature")
    if whole and tuple(labels) != LABELS:
        rule = f"it is made for {len(labels)} labels, and the drawn world has {len(LABELS)} or another order of them"
        raise UserError(field, value, rule, REMEDY)


def resolve(name: str, member: str) -> str:
    """`miniature` -> a reference to its `clip` or `llm`, after a look at its files; any other name as it is."""
    if name != NAME:
        return name
    checked()
    return f"{NAME}:{member}"
