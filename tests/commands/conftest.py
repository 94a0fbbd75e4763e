"""What the tests of commands share: options of a build with small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pad = Callable[..., Any]
"""The fixture `pad`: runs a command in this process."""


@pytest.fixture(scope="session")
def common(models_toml: Path) -> list[object]:
    """Options of a build with the small models, without Ray."""
    return ["--models", models_toml, "--view-size", 112, "--engine", "local"]
