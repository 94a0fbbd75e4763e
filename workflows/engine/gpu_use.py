"""Measure how busy the GPU of a worker is."""

from __future__ import annotations

import sys
import time
from collections import deque

EVERY = 1.0
"""Seconds between two measurements. The driver of the GPU averages over up to a second itself."""
RECENT = 60
"""Number of measurements that are averaged."""


class GpuUse:
    """The share of the last minute in which the GPU of this process worked, for this process or for any other."""

    def __init__(self) -> None:
        self._shares: deque[float] = deque(maxlen=RECENT)
        self._asked = -EVERY
        self._known = True

    def recent(self) -> float | None:
        """Measure, and return the mean of the recent measurements, 0 to 1. None if the process has no GPU, or if the
        driver does not tell (as for a part of a GPU, MIG)."""
        torch = sys.modules.get("torch")
        if torch is None or not self._known or not torch.cuda.is_available():
            return None
        if time.monotonic() - self._asked >= EVERY:
            self._asked = time.monotonic()
            try:
                self._shares.append(torch.cuda.utilization() / 100)
            except Exception:  # no NVML, an old driver, MIG: each raises a class of its own
                self._known = False
                return None
        return sum(self._shares) / len(self._shares)
