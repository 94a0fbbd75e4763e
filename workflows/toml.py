"""Read the user's TOML files, and report a wrong setting in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pad_pipeline.errors import UserError

Settings = TypeVar("Settings", bound=BaseModel)


def read_toml(field: str, path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: about the parameter `field`: the file is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(field, path, f"it can't be read ({error.strerror})", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(field, path, f"it is not valid TOML ({error})", "correct the file") from error


def read_settings(kind: type[Settings], settings: Path | None, options: dict[str, Any]) -> Settings:
    """Read settings of the class `kind` from the TOML file `settings`, if there is one; `options` override them.

    Raises:
        UserError: the file can't be read, or a setting is wrong.
    """
    data = read_toml("settings", settings) if settings else {}
    try:
        return kind.model_validate(data | options)
    except ValidationError as error:
        raise settings_error(error, str(settings or "")) from error


def settings_error(error: ValidationError, where: str, section: str = "") -> UserError:
    """Turn pydantic's first error into a `UserError` about a setting in `section` of a file. `where` names the file."""
    # Unknown names come first: an unknown name is often a misspelled name that pydantic reports as missing.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    parts = [section, *map(str, first["loc"])]
    name = ".".join(part for part in parts if part) or "settings"
    value = first["input"] if not isinstance(first["input"], dict) else "{...}"
    message = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}.get(
        first["type"], first["msg"]
    )
    return UserError(f"{where}: {name}" if where else name, value, message.removeprefix("Value error, "), "correct it")
