"""Name the analyses that a user can choose. This module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

StudyName = Literal["entropy", "align", "pursuit", "lens", "overlap"]
"""The names in `pad_pipeline.analysis.studies.STUDIES`."""
Analysis = Literal["all", StudyName, "health"]
"""The choices of `pad analyze`: all studies, one of them, or those that the signs of failure need."""
