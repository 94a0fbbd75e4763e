"""The settings of `pad duplicates`; the command line reads them without NumPy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DuplicateSettings(BaseModel):
    """When two images count as copies of each other."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    distance: int = Field(10, ge=0, le=16)
    """Near copies differ in at most this many of 64 bits, in both of two hashes. With 51 photographs, recompressed
    and resized copies differ in at most 2 bits, copies cropped by 2% in 8, by 3% in 12, and different photographs in at
    least 21."""
