"""Settings of a report. This module imports quickly, because the command line needs it for its options."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """The settings of `pad report`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    limit: int | None = Field(None, ge=1)
    """The number of images, from the first on; all by default."""
    page_size: int = Field(24, ge=1, le=500)
    """Images on one page, and in one data file."""
    edge: int = Field(512, ge=32, le=8192)
    """The long edge of the small copies of images, in pixels."""
    block: int = Field(4096, ge=1)
    """Images in one file of the index."""
    threads: int = Field(default_factory=lambda: min(8, os.cpu_count() or 1), ge=1)
    """Threads that read, decode and draw images."""
