"""What a user chooses of an engine. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["ray", "local"]
"""Where the stages run: on Ray, or in one process on this machine."""
