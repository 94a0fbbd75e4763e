"""The time that a run takes on GPUs that are not here, calculated from its operations."""

from __future__ import annotations

import re
from typing import NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.gpus import PEAKS

UTILIZATION = 0.4
"""The share of a GPU's peak that is assumed to be used. It was not measured yet."""


class Cards(NamedTuple):
    """A number of GPUs of one kind."""

    number: int
    name: str
    """A key of `PEAKS`."""

    @classmethod
    def parse(cls, text: str) -> Cards:
        """Read `h100` (8 of them), or `16xh100`.

        Raises:
            UserError: the text is not of this form, or the GPU is not known.
        """
        found = re.fullmatch(r"(?:([1-9]\d{0,4})x)?(\w+)", text, re.IGNORECASE | re.ASCII)
        if not found or found[2].upper() not in PEAKS:
            rule = f"the known cards are {', '.join(PEAKS)}"
            raise UserError("card", text, rule, "write for instance h100, or 16xh100")
        return cls(int(found[1] or 8), found[2].upper())

    def hours(self, operations: float) -> dict[int, float]:
        """Return the hours that some operations take on 1 card, on 8, and on this number of cards."""
        one = operations / (PEAKS[self.name] * UTILIZATION) / 3600
        return {count: one / count for count in sorted({1, 8, self.number})}
