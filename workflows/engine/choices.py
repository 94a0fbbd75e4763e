"""What a user chooses of an engine. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, NamedTuple

Engine = Literal["ray", "local"]
"""Where the stages run: on Ray, or in this process."""
Placement = Literal["auto", "fused", "pools"]
"""`fused`: all models in one worker for each GPU. `pools`: workers of its own for each model. `auto`: fused where every
GPU can hold all models."""


class Size(NamedTuple):
    """What the user asks of one stage's pool."""

    workers: int
    gpus: float | None = None
    """For each worker; None: as by default."""
