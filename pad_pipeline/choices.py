"""Types with a few allowed values that the command line offers too. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "empty", "failed"]
"""The result for an image: it has regions, has none, or could not be read or annotated."""
Depth = Literal["names", "sizes", "sample", "full"]
"""The facts by which a plan recognizes images: names; sizes too; and the sha256 of some images or of all."""
