"""What GPUs can do, by name."""

from __future__ import annotations

PEAKS = {
    "A10": 125e12, "A100": 312e12, "B200": 2250e12, "H100": 989e12, "H200": 989e12, "L4": 121e12, "L40S": 362e12,
    "MI300X": 1307e12, "3090": 71e12, "4090": 165e12, "5090": 210e12,
}  # fmt: skip
"""A part of the GPU's name -> its peak FLOP/s in bfloat16, with float32 sums and without sparsity; from data sheets."""


def peak_of(device: str) -> float | None:
    """Return the peak FLOP/s of a GPU by the name that its driver gives, such as `NVIDIA H100 80GB HBM3`; None if the
    GPU is not known."""
    known = [part for part in PEAKS if part in device]
    return PEAKS[max(known, key=len)] if known else None
