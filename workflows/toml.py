"""Settings of the user's: TOML in, one line about what is wrong out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pad_pipeline.errors import UserError


def read_toml(field: str, path: Path) -> dict[str, Any]:
    """A TOML file of the user's.

    Raises:
        UserError: it is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(field, path, f"it can't be read ({error.strerror})", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(field, path, f"it is not valid TOML ({error})", "mend the file") from error


BUILT_IN = "(built-in)"
"""Stands in pydantic's paths for one of pad's own models, where a model of the user's could stand too."""


def settings_error(error: ValidationError, where: str, section: str = "") -> UserError:
    """pydantic's first complaint as one line.

    Args:
        error: what it said.
        where: the file; empty where there is none.
        section: that was validated, where that was not all of the file.
    """
    # A name that does not exist explains another that is missing, so it goes first.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    parts = [section, *(str(part) for part in first["loc"] if part != BUILT_IN)]
    name = ".".join(part for part in parts if part) or "settings"
    value = first["input"] if not isinstance(first["input"], dict) else "{...}"
    message = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}.get(
        first["type"], first["msg"]
    )
    return UserError(f"{where}: {name}" if where else name, value, message.removeprefix("Value error, "), "correct it")
