"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def cluster(cpus: int = 2) -> Iterator[str]:
    """One node, on loopback; its address. Ray's own tokens are in force."""
    started = subprocess.run(
        [
            *(RAY, "start", "--head", "--node-ip-address", "127.0.0.1", "--port", "0", "--num-cpus", str(cpus)),
            *("--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", "200000000"),
        ],
        capture_output=True,
        text=True,
    )
    if started.returncode:
        raise RuntimeError(started.stdout + started.stderr)
    try:
        yield "auto"
    finally:
        subprocess.run([RAY, "stop", "--force"], capture_output=True)
