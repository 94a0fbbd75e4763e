"""Read the user's TOML files, and report wrong settings in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pad_pipeline.errors import UserError


def read_toml(field: str, path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: the file, which the parameter `field` names, is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(field, path, f"it can't be read ({error.strerror})", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(field, path, f"it is not valid TOML ({error})", "correct the file") from error


def settings_error(error: ValidationError, where: str, section: str = "") -> UserError:
    """Return pydantic's first error as a `UserError`, for a section of the file `where`, or for the whole file."""
    # An unknown name is often the misspelling of a missing one, so it is reported first.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    parts = [section, *map(str, first["loc"])]
    name = ".".join(part for part in parts if part) or "settings"
    value = first["input"] if not isinstance(first["input"], dict) else "{...}"
    message = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}.get(
        first["type"], first["msg"]
    )
    return UserError(f"{where}: {name}" if where else name, value, message.removeprefix("Value error, "), "correct it")
