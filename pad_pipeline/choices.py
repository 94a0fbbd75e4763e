"""The types of settings with a few allowed values. The command line offers them, so this file imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "empty", "failed"]
"""The result for an image: `ok` with regions, `empty` without, `failed` if it could not be read or annotated."""
Depth = Literal["names", "sizes", "sample", "full"]
"""How a plan recognizes images: by `names`; also by `sizes`; also by the sha256 of a `sample` or of all (`full`)."""
RerunDepth = Literal["names", "sizes", "sample", "full", "kept"]
"""What a rerun compares: a new plan of some `Depth`; or, with the plan that is `kept`, its sample only."""
Shapes = Literal["masks", "boxes"]
"""The shapes that people correct in another tool, one for each region."""
