"""What a user chooses of an analysis. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

StudyName = Literal["entropy", "align", "pursuit", "lens", "overlap"]
STUDIES: tuple[StudyName, ...] = get_args(StudyName)
Analysis = Literal["all", StudyName, "health"]
"""What `pad analyze` measures: all studies, one of them, or those that the signs of failure need."""
