"""Define the names of the analyses, for the command line: this module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

StudyName = Literal["entropy", "align", "pursuit", "lens", "overlap", "place", "words", "sentences", "reliance"]
"""The keys of `pad_pipeline.analysis.studies.STUDIES`."""
Analysis = Literal["all", StudyName, "health"]
"""The choices of `pad analyze`: one analysis, `all`, or `health` for the signs of failure."""
