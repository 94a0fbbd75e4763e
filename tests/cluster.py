"""Ray clusters on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def cluster(cpus: int = 2) -> Iterator[str]:
    """One node; its address. It outlives the drivers that join it."""
    started = subprocess.run(
        [
            *(RAY, "start", "--head", "--port", "0", "--num-cpus", str(cpus), "--include-dashboard", "false"),
            *("--disable-usage-stats", "--object-store-memory", "200000000"),
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


@contextmanager
def nodes(number: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs, and nodes with one each; the cluster, and these nodes."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200_000_000}
    # Ray takes up to half a minute to believe in a node's death; nothing here depends on how long.
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon, **memory}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made, [made.add_node(num_cpus=1, **memory) for _ in range(number)]
    finally:
        made.shutdown()
