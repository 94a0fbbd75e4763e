"""Settings of a report. This module imports quickly, because the command line needs it for its options."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """The settings of `pad report`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    limit: int | None = Field(None, ge=1)
    """The number of images, from the first on; all by default."""
    page_size: int = Field(24, ge=1, le=500)
    """The number of images on one page, and in one data file."""
    edge: int = Field(512, ge=32, le=8192)
    """The long edge of the small copies of images, in pixels."""
