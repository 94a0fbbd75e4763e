"""What a user chooses of an analysis. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

StudyName = Literal["entropy", "align", "pursuit", "lens", "overlap"]
"""The names in `pad_pipeline.analysis.studies.STUDIES`."""
Analysis = Literal["all", StudyName, "health"]
"""What `pad analyze` measures: all studies, one of them, or those that the signs of failure need."""
