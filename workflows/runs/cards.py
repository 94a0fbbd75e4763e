"""GPUs by name, to calculate how long a run takes on them."""

from __future__ import annotations

import re
from typing import NamedTuple

from pad_pipeline.errors import UserError

TERAFLOPS = {
    "a10": 125, "a100": 312, "b200": 2250, "h100": 989, "h200": 989, "l4": 121, "l40s": 362, "mi300x": 1307,
    "rtx3090": 71, "rtx4090": 165, "rtx5090": 210,
}  # fmt: skip
"""Name -> 10^12 operations a second in bfloat16, with float32 sums and without sparsity, by the maker's datasheet."""
UTILIZATION = 0.4
"""The share of a card's operations that is assumed to be used. It was not measured yet."""


class Cards(NamedTuple):
    """A number of GPUs of one kind."""

    number: int
    name: str

    @classmethod
    def parse(cls, text: str) -> Cards:
        """Read `h100`, or `16xh100` for 16 of them.

        Raises:
            UserError: the text is not of this form, or the card is not known.
        """
        found = re.fullmatch(r"(?:([1-9]\d{0,4})x)?([a-z0-9]+)", text.lower().replace(" ", ""))
        if not found or found[2] not in TERAFLOPS:
            known = ", ".join(TERAFLOPS)
            raise UserError("card", text, f"the known cards are {known}", "write for instance h100, or 16xh100")
        return cls(int(found[1] or 8), found[2])

    def hours(self, operations: float) -> dict[int, float]:
        """Return the hours for some operations, for 1 card, for 8, and for this number of cards."""
        one = operations / (TERAFLOPS[self.name] * 1e12 * UTILIZATION) / 3600
        return {count: one / count for count in sorted({1, 8, self.number})}
