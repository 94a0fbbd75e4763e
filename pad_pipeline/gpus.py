"""What GPUs can do, by name."""

from __future__ import annotations

import re

PEAKS = {
    "A10": 125e12, "A100": 312e12, "B200": 2250e12, "H100": 989e12, "H200": 989e12, "L4": 121e12, "L40": 181e12,
    "L40S": 362e12, "MI300X": 1307e12, "3090": 71e12, "4090": 165e12, "5090": 210e12,
}  # fmt: skip
"""A word of the GPU's name -> its peak FLOP/s in bfloat16, with float32 sums and without sparsity; from data sheets.
The numbers of H100 and H200 are those of the SXM form."""


def peak_of(device: str) -> float | None:
    """Return the peak FLOP/s of a GPU by the name that its driver gives, such as `NVIDIA H100 80GB HBM3`; None if the
    GPU is not known."""
    return next((PEAKS[word] for word in re.findall(r"\w+", device) if word in PEAKS), None)
