"""Choices of heavy modules that options of the command line offer too. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "empty", "failed"]
"""What became of an image: it has regions, has none, or could not be read or annotated."""
Depth = Literal["names", "sizes", "sample", "full"]
"""What a plan notes of each image, to know it again: its name; its size; the sha256 of some images; or of all."""
