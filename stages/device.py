"""Which device computes, and with how many threads."""

from __future__ import annotations

import torch


def use_device(threads: int) -> torch.device:
    """The GPU when there is one, else the CPU with `threads` threads.

    The number is set here, and not left to the process: it decides in which order sums are taken, and so the last
    bits of every result.
    """
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
