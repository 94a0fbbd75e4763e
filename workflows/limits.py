"""How many images may fail."""

from __future__ import annotations

import re
from fractions import Fraction

from pad_pipeline.errors import UserError

_LIMIT = re.compile(r"(\d{1,12})|(\d{1,3}(?:\.\d+)?)%")


def failures_allowed(text: str, images: int) -> int:
    """`--max-failed`: a count, or a share such as `5%`, as a count.

    Raises:
        UserError: it is neither.
    """
    found = _LIMIT.fullmatch(text)
    if not found or (found[2] and float(found[2]) > 100):
        raise UserError("--max-failed", text, "it should be a count or a share", "write for instance 100 or 5%")
    return int(found[1]) if found[1] else int(Fraction(found[2]) * images // 100)
