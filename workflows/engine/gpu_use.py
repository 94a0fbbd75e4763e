"""Measure how busy the GPU of a worker is."""

from __future__ import annotations

import sys
import time
from collections import deque

EVERY = 1.0
"""Seconds between two measurements. The driver of the GPU averages over up to a second itself."""
RECENT = 60.0
"""Seconds over which measurements are averaged."""


class GpuUse:
    """The share of the last minute in which the GPU of this process worked, for this process or for any other."""

    def __init__(self) -> None:
        self._shares: deque[tuple[float, float]] = deque()
        """Times and shares of the recent measurements."""
        self._asked = -EVERY
        self._known = True

    def recent(self) -> float | None:
        """Measure, and return the mean of the recent measurements, 0 to 1. None if the process has no GPU, or if the
        driver does not tell (as for a part of a GPU, MIG)."""
        torch = sys.modules.get("torch")
        if torch is None or not self._known or not torch.cuda.is_available():
            return None
        if (now := time.monotonic()) - self._asked >= EVERY:
            self._asked = now
            try:
                self._shares.append((now, torch.cuda.utilization() / 100))
            except Exception:  # no NVML, an old driver, MIG: each raises a class of its own
                self._known = False
        shares = [share for measured, share in [*self._shares] if now - measured <= RECENT]
        while len(self._shares) > len(shares):
            self._shares.popleft()
        return sum(shares) / len(shares) if shares and self._known else None
